"""Every command in README and docs is one that its program accepts: known keys, values, names and targets.

Files and runs that the commands name need not exist. What the commands do is tested elsewhere.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lmsys_unsloth.cli.arguments import parse_composed, prepare_arguments, require_readable
from lmsys_unsloth.cli.words import parse_words
from lmsys_unsloth.commands import data_check
from lmsys_unsloth.commands.main import available
from lmsys_unsloth.config.resources import composing
from lmsys_unsloth.core.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PROGRAM = re.compile(
    r"(python (train|eval)\.py|python -m lmsys_unsloth|lmsys-unsloth|torchrun|accelerate launch|make )"
)
STAND_INS = {"model=X": "model=smollm2", "model=NAME": "model=smollm2", "experiment=NAME": "experiment=best"}
"""Words of the documents that stand for any name."""
FAMILIAR = ("--help", "--version", "COMMAND")
"""Words that no rule of a command lists."""


def commands(text: str) -> Iterator[str]:
    """Commands in code spans, indented lines and fenced blocks of Markdown, without comments."""
    fenced = [
        line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]
    indented = [line for line in text.splitlines() if line.startswith("    ")]
    for code in (*re.findall(r"`([^`\n]+)`", text), *indented, *fenced):
        command = re.sub(r"\s+#.*", "", code).strip().removeprefix("$ ")
        if PROGRAM.match(command):
            yield command


def documented() -> list[str]:
    found: dict[str, None] = {}
    for document in (*DOCUMENTS, *sorted((ROOT / "docs").glob("*.md"))):
        found |= dict.fromkeys(commands(document.read_text(encoding="utf-8")))
    for notebook in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        lines = [line for cell in code_cells(notebook) for line in cell["source"]]
        typed = [re.sub(r"\s+(2>|\|).*", "", line[1:]).strip() for line in lines if line.startswith("!")]
        found |= dict.fromkeys(filter(PROGRAM.match, typed))
    return list(found)


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def accept(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise an error unless the command's program takes its words."""
    words = [STAND_INS.get(word, word) for word in shlex.split(command) if "…" not in word]
    script = next((word for word in words if word in ("train.py", "eval.py")), None)
    if script:
        accept_of_hydra(script, words[words.index(script) + 1 :], monkeypatch)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        given = {word for word in words[1:] if "=" not in word}
        assert given <= set(targets), given
        assert {word.partition("=")[0] for word in words[1:] if "=" in word} <= {"ARGS", "PACKAGES"}
    elif words[:2] == ["python", "-m"]:
        module = importlib.import_module(f"{words[2]}.__main__" if words[2] in PACKAGES else words[2])
        accept_of_module(module, words[3:])
    elif "lmsys-unsloth" in words:
        accept_of_command(words[words.index("lmsys-unsloth") + 1 :], monkeypatch)


PACKAGES = ("lmsys_unsloth", *(f"lmsys_unsloth.{name}" for name in ("sweep", "export", "serve", "kit")))


def accept_of_hydra(script: str, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    require_readable(words)
    words = [
        word for word in words if word.partition("=")[0] not in ("run", "runs", "resume", "--cfg", "job")
    ]
    words = [word for word in words if not word.startswith(("-", "cv="))]
    overrides = OverridesParser.create().parse_overrides(words)
    # Of several values the first; tests/sweep composes all jobs of a sweep.
    words = [
        f"{o.key_or_group}={next(o.sweep_string_iterator())}" if o.is_discrete_sweep() else word
        for o, word in zip(overrides, words, strict=True)
        if not o.is_interval_sweep()
    ]
    with composing() as compose:
        parse_composed(compose(prepare_arguments(words)), words)


def accept_of_module(module: object, words: Sequence[str]) -> None:
    if words and (rules := getattr(module, "RULES", None)):
        parse_words(words, rules, "")
    elif words and hasattr(module, "parse_arguments"):
        module.parse_arguments(words)


def accept_of_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = available()
    name = next((n for count in (2, 1) if (n := " ".join(words[:count])) in known), None)
    assert name or not words or words[0] in FAMILIAR, f"no command {' '.join(words)}"
    rest = [word for word in words[len((name or "").split()) :] if word not in FAMILIAR]
    if name in ("train", "eval"):
        accept_of_hydra(f"{name}.py", rest, monkeypatch)
    elif name == "data check":
        data_check.parse_arguments(rest)
    elif name and rest and name != "completion":
        accept_of_module(known[name].imported(), rest)


@pytest.mark.parametrize("command", documented())
def test_every_documented_command_is_accepted(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("my_prompt.yaml", "mine.yaml", "wrong.yaml"):
        shutil.copy(ROOT / "conf" / "prompt" / "v2.yaml", tmp_path / name)
    for name in ("FILE.gguf", "EXPORT/model.gguf", "DIR/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    accept(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "python train.py model=lama3", "python train.py -m lora.q=8,16", "python eval.py eval.swop=average",
        "make demos", "python -m lmsys_unsloth.export run=RUN format=onnx out=DIR", "lmsys-unsloth trian",
        "lmsys-unsloth train lora.q=8", "torchrun --nproc-per-node=4 train.py train.epoch=2",
    ],
)  # fmt: skip
def test_a_command_that_is_not_accepted_is_found(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((UserError, AssertionError)):
        accept(next(commands(f"`{command}`")), monkeypatch)


@pytest.mark.parametrize(
    "notebook", sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")), ids=lambda n: n.stem
)
def test_notebooks_were_executed_from_top_to_bottom(notebook: Path) -> None:
    """If this fails: ``python benchmarks/tutorials.py``."""
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = json.dumps([cell["outputs"] for cell in cells])
    assert '"output_type": "error"' not in outputs and "Traceback" not in outputs
    assert not re.search(r"/(home|root|tmp|work|Users)/", outputs)
