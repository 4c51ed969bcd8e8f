"""Run every command of README and docs, at a small size, in a folder that holds what they name.

    python benchmarks/documented_commands.py --out commands.md [--only TEXT …] [--jobs 2]

Commands that train or score get a tiny random model, a few rows and two steps in place of what they name; of
the values of a sweep the first two are used. A command that only GPUs, other machines or a person can
complete is listed with the reason. The table in ``--out`` has one line for each command.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "benchmarks", "tests")]

import pandas as pd
from heading import heading
from test_documented_commands import DOCUMENTS, STAND_INS, commands, documented

SECONDS = 600
"""Time limit of a command."""

NOT_RUN = {
    r"…|^torchrun( train.py)?$|^accelerate launch --cpu$|COMMAND": "a part of a command",
    r"^python -m lmsys_unsloth\.(sweep|pseudo)$": "the name of a module",
    r"^make ": "runs in continuous integration, or runs this repository's other commands",
    r"submitit_slurm|launcher=ray": "needs a cluster; its launchers are tested with stand-ins",
    r"multi_gpu|nproc-per-node": "several processes are tested in tests/train/test_several_ranks.py",
    r"engine=openai|engine=llama_cpp|format=gguf": "needs a server or llama.cpp",
    r"\.serve |dashboard": "runs until it is stopped, or needs an account; see tests/serve, tests/report",
    r"python=3.11": "downloads packages for another machine",
}  # fmt: skip
"""Reasons by pattern."""

SMALL = (
    "model.path=MODEL", "model.first_layer=0", "train.max_steps=2", "debug.train_rows=24",
    "prompt.max_tokens=256", "data.folds=3",
)  # fmt: skip
"""Words that make a training small."""


@functools.cache
def in_markdown() -> set[str]:
    """Commands of README and the pages; the other ones are in notebooks."""
    pages = (*DOCUMENTS, *sorted((ROOT / "docs").glob("*.md")))
    return {command for page in pages for command in commands(page.read_text(encoding="utf-8"))}


def prepare(folder: Path) -> None:
    """Write files, runs and models with the names that the documents use."""
    from tiny import save_tiny_llama
    from trained_runs import settings, train

    from lmsys_unsloth.config.run_directory import Run
    from lmsys_unsloth.simulate import main as simulate

    save_tiny_llama(folder / "model")
    for name in ("train", "arena", "mine", "pseudo"):
        simulate(["rows=60", "length=short", f"out={folder / name}.csv"])
    for name in ("test", "new", "other", "rows", "unlabelled"):
        simulate(["rows=6", "seed=3", "length=short", f"out={folder / name}.csv"])
    pd.read_csv(folder / "arena.csv").to_parquet(folder / "arena.parquet")
    table = pd.read_csv(folder / "unlabelled.csv")
    table.drop(columns=[name for name in table if name.startswith("winner")]).to_csv(
        folder / "unlabelled.csv", index=False
    )
    for number in range(3):
        train(settings(folder, f"fold={number}"), Run(folder / f"RUN{number}"))
    for name in ("RUN", "RUN_X", "RUN_Y", "SMALL", "STAGE1", "run", "student", "first"):
        shutil.copytree(folder / "RUN0", folder / name)
    for name in ("LARGE", "mine", "v2"):
        shutil.copytree(folder / "RUN1", folder / name)
    for name in ("DIR", "TEACHER", "teacher", "SCORED", "scored"):
        target = "unlabelled.csv" if name.lower() == "scored" else "train.csv"
        words = ["runs=[RUN0,RUN1,RUN2]", f"data.path={target}", f"hydra.run.dir={name}"]
        subprocess.run([sys.executable, str(ROOT / "eval.py"), *words], cwd=folder, check=True)
    sweep = ["-m", "lora.r=4,8", "hydra.sweep.dir=SWEEP", "data.rows=60"]
    words = [*sweep, *(word.replace("MODEL", str(folder / "model")) for word in SMALL)]
    subprocess.run([sys.executable, str(ROOT / "train.py"), *words], cwd=folder, check=True)
    pairs = [{"prompt": f"Say {n}", "chosen": f"{n}!", "rejected": "No."} for n in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    for name in ("mine.yaml", "my_prompt.yaml"):
        shutil.copy(ROOT / "conf" / "prompt" / "v2.yaml", folder / name)


def small(command: str, folder: Path) -> list[str]:
    """The words of a command, at the small size, as a process takes them."""
    command = command.replace("RUN RUN", "RUN_X RUN_Y")
    words = [STAND_INS.get(word, word) for word in shlex.split(command)]
    others = {"in=FILE": "in=pairs.jsonl", "model.path=DIR": f"model.path={folder / 'model'}"}
    words = [others.get(word, word) for word in words]
    words = [re.sub(r"(?<![\w.])FILE$", "train.csv", word) for word in words]
    words = [re.sub(r"^((?!runs|prompt.answers)[\w.]+=)([^,\[(]+),([^,]+),.*$", r"\1\2,\3", w) for w in words]
    words = [word.replace("RUN0,RUN1,RUN2,RUN3,RUN4", "RUN0,RUN1,RUN2") for word in words]
    words = [{"cv=5": "cv=3", "search.trials=50": "search.trials=2"}.get(word, word) for word in words]
    trains = "train.py" in words or words[:2] == ["lmsys-unsloth", "train"]
    scores_untrained = "eval.py" in words and not re.search(r"\b(run|runs|cv)=", command)
    if (trains or scores_untrained) and not {"--help", "--cfg"} & set(words) and "resume=" not in command:
        given = {word.partition("=")[0] for word in words}
        given |= {"data.folds"} if "cv" in given else set()  # which says the same
        added = [word for word in SMALL if word.partition("=")[0] not in given]
        words += [word.replace("MODEL", str(folder / "model")) for word in added]
        words += ["search.trials=2"] if "search=default" in words and "search.trials" not in given else []
    programs = {"python": sys.executable, "lmsys-unsloth": str(Path(sys.executable).parent / "lmsys-unsloth")}
    words[0] = programs.get(words[0], words[0])
    return [str(ROOT / word) if word in ("train.py", "eval.py") else word for word in words]


def run(command: str, prepared: Path) -> tuple[str, str, float]:
    """Run a command in a copy of a folder; returns it, what is to be said of it, and its seconds."""
    reason = next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, command)), None)
    if command not in in_markdown():
        reason = "executed in its notebook, see benchmarks/tutorials.py"
    if reason is not None:
        return command, f"not run: {reason}", 0.0
    started = time.perf_counter()
    words = small(command, prepared)
    try:
        with tempfile.TemporaryDirectory() as path:
            folder = Path(path) / "folder"
            shutil.copytree(prepared, folder)
            for target in re.findall(r"(?:hydra.(?:run|sweep).dir=|out=|--output )(\S+)", command):
                if (folder / target).is_dir():
                    shutil.rmtree(folder / target)
            done = subprocess.run(
                words, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        lines = (done.stdout + done.stderr).strip().splitlines()
        result = "ok" if done.returncode == 0 else f"status {done.returncode}: {' / '.join(lines[-3:])}"
    except subprocess.TimeoutExpired:
        result = f"not finished in {SECONDS} s"
    seconds = time.perf_counter() - started
    print(f"{result[:100]:100}  {seconds:4.0f} s  {command}", flush=True)
    return command, result, seconds


def main(words: Sequence[str] | None = None) -> int:
    """Run the commands; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="commands that contain a text")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args(words)
    os.environ |= {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore", "COLUMNS": "100"}
    chosen = [c for c in documented() if not options.only or any(text in c for text in options.only)]
    with tempfile.TemporaryDirectory() as path, ThreadPoolExecutor(options.jobs) as pool:
        prepare(Path(path))
        results = list(pool.map(lambda command: run(command, Path(path)), chosen))
    ran = [result for _, result, seconds in results if seconds]
    failed = [result for result in ran if result != "ok"]
    table = [f"| `{command}` | {result} | {seconds:.0f} |" for command, result, seconds in results]
    options.out.write_text(
        "\n".join([
            heading("Commands of README and docs", "python benchmarks/documented_commands.py"), "",
            f"{len(ran)} of {len(results)} commands ran, {len(failed)} of them failed.", "",
            "| command | result | seconds |", "|---|---|---|", *table, "",
        ]),
        encoding="utf-8",
    )  # fmt: skip
    print(f"{len(ran)} ran, {len(failed)} failed: {options.out}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
