"""The likeliest mistakes of a first hour, what the answer to each says, and how to make them all at once.

``docs/troubleshooting.md`` is made from this list, and ``test_mistakes.py`` tests it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ALL_AT_ONCE = """
import contextlib, io, json, sys
from lmsys_unsloth.commands import eval, train
answers = []
for command, *words in json.load(sys.stdin):
    sys.argv = [f"{command}.py"]
    printed, status = io.StringIO(), None
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        try:
            {"train": train, "eval": eval}[command].main(words)
        except SystemExit as ended:
            status = ended.code
    answers.append([status, printed.getvalue()])
slow = {"torch", "transformers", "unsloth", "trl", "peft", "bitsandbytes", "sklearn"} & sys.modules.keys()
print(json.dumps([answers, sorted(slow)]))
"""

COLUMNS = "id,prompt,response_a,response_b"
FILES = {
    "train.csv": f"{COLUMNS},winner_model_a,winner_model_b,winner_tie\n1,[],[],[],1,0,0\n",
    "unlabelled.csv": f"{COLUMNS}\n1,[],[],[]\n",
    "header.csv": f"{COLUMNS},winner_model_a,winner_model_b,winner_tie\n",
    "pairs.csv": "question,chosen,rejected\na,b,c\n",
    "semicolons.csv": "id;prompt;response_a\n1;2;3\n",
    "empty.csv": "",
    "notes.txt": "hello",
    "not.csv.gz": "plain text",
    "not.parquet": "plain text",
    "folder/inside.csv": "x",
    "my (1).csv": "x",
    "unfinished/config.yaml": "seed: 1\n",
}
PATH = ["train", "data=lmsys"]

MISTAKES: dict[str, tuple[list[str], str]] = {
    "misspelt key": (["train", "lora.rr=8"], "lora.rr: no such key; did you mean lora.r?"),
    "misspelt section": (["train", "trian.epochs=2"], "trian: no such key; did you mean train?"),
    "misspelt model": (["train", "model=lama3"], "model=lama3: no such model; did you mean model=llama3?"),
    "unknown prompt": (["train", "prompt=v77"], "known: v1, v2"),
    "no model": (["train", "model="], "model=: which one? known: auto, gemma2"),
    "two dashes": (["train", "--model=llama3"], "arguments have no dashes: model=llama3"),
    "unknown option": (["train", "--multi"], "--multi: no such option; did you mean --multirun?"),
    "spaces": (["train", "model", "=", "llama3"], "put no spaces around '=': model=llama3"),
    "file alone": (["train", "train.csv"], "to read this file: data=lmsys data.path=train.csv"),
    "run alone": (["eval", "unfinished"], "this is a run directory: run=unfinished"),
    "command twice": (["train", "eval"], "eval: is a command itself"),
    "list without brackets": (["train", "data.extra=a.csv,b.csv"], "'data.extra=[a.csv,b.csv]'"),
    "one run in runs": (["eval", "runs=RUN"], "is a list: 'runs=[RUN]'"),
    "sweep without -m": (["train", "prompt=v1,v2"], "several values start a sweep, one run for each: add -m"),
    "brackets in a path": ([*PATH, "data.path=my (1).csv"], """'data.path="my (1).csv"'"""),
    "lost quote": (["train", "model='llama3"], "quote the value"),
    "group with plus": (["train", "+model=llama3"], "a group is chosen without '+': model=llama3"),
    "name of a model": (["train", "model.name=llama3"], "choose it: model=llama3"),
    "wrong type": (["train", "train.epochs=many"], "train.epochs = 'many': input should be a valid integer"),
    "empty value": (["train", "train.epochs="], "train.epochs = ''"),
    "fold out of range": (["train", "fold=5"], "data.folds = 5, so the folds are 0 to 4"),
    "no file": (PATH, "data=lmsys needs data.path=FILE"),
    "missing file": ([*PATH, "data.path=trian.csv"], "no such file in"),
    "missing file, near": ([*PATH, "data.path=trian.csv"], "did you mean train.csv?"),
    "directory as file": ([*PATH, "data.path=folder"], "is a folder, not a file; it holds folder/inside.csv"),
    "empty file": ([*PATH, "data.path=empty.csv"], "the file is empty"),
    "header only": ([*PATH, "data.path=header.csv"], "no rows; a file of preferences needs at least one"),
    "text file": ([*PATH, "data.path=notes.txt"], "unknown kind of file; data.path takes .csv"),
    "no gzip": ([*PATH, "data.path=not.csv.gz"], "rename it to not.csv, otherwise fetch it again"),
    "no parquet": ([*PATH, "data.path=not.parquet"], "the download is broken"),
    "wrong columns": ([*PATH, "data.path=pairs.csv"], "missing; found question, chosen, rejected"),
    "semicolons": ([*PATH, "data.path=semicolons.csv"], "its columns are not separated by commas"),
    "no labels": ([*PATH, "data.path=unlabelled.csv"], "no column says which response won"),
    "missing extra": (["train", "data.extra=[no.csv]"], "no.csv: no such file"),
    "missing folds": (["train", "data.fold_file=no.csv"], "give the folds.csv of a run"),
    "missing stage": (["train", "train.init_from=no"], "train.init_from = no: does not exist"),
    "missing teacher": (["train", "data.soft_labels=no"], "data.soft_labels = no: does not exist"),
    "missing template": (["train", "prompt.file=no.yaml"], "Name a YAML file with a template"),
    "no model folder": (["train", "model.path=no"], "must be a folder with a config.json"),
    "no GPU for 8 billion weights": (["train", "model=llama3"], "has 8 billion weights, and this"),
    "output in a file": (["train", "hydra.run.dir=notes.txt/run"], "notes.txt is a file, not a folder"),
    "run of nothing": (["eval", "run=nothing"], "nothing: no such run directory"),
    "no run": (["eval"], "what is to be scored? A trained run (run=RUN)"),
    "run in training": (["train", "run=RUN"], "a training is continued with resume=RUN"),
    "resume of nothing": (["train", "resume=nothing"], "nothing: no such run directory"),
    "no run directory": (["eval", "run=folder"], "not a run directory, it has no config.yaml"),
}  # fmt: skip


def make_all(folder: Path) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """Make each mistake, all of them in one process that works in ``folder``.

    Returns:
        Exit status and message of each, and the slow imports that were needed.
    """
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", ALL_AT_ONCE], input=json.dumps([words for words, _ in MISTAKES.values()]),
        cwd=folder, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found, slow = json.loads(done.stdout)
    return dict(zip(MISTAKES, found, strict=True)), slow
