"""The command ``lmsys-unsloth``: its first word or two choose what to do, the others are arguments of that.

Nothing of the package but this file is imported before the choice is made.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "lmsys-unsloth"


@dataclass(frozen=True)
class Command:
    """One command: its module has ``main(words) -> status``."""

    name: str
    module: str
    """Name below the package: a module, or a package with a ``__main__``."""
    summary: str
    example: str
    own_help: bool = True
    """Whether ``main`` answers ``--help``; otherwise the docstring of the module is printed."""

    def file(self) -> Path | None:
        """The module's file; None if this version does not have it."""
        folder = Path(__file__).resolve().parents[1].joinpath(*self.module.split("."))
        files = (folder / "__main__.py", folder.with_suffix(".py"))
        return next((file for file in files if file.is_file()), None)

    def imported(self) -> Any:
        """Import the module with ``main``."""
        file = self.file()
        assert file is not None
        below = f"{self.module}.__main__" if file.name == "__main__.py" else self.module
        return importlib.import_module(f"lmsys_unsloth.{below}")

    def run(self, words: Sequence[str]) -> int:
        """Run the command and return its exit status."""
        module = self.imported()
        if not self.own_help and {"-h", "--help"} & set(words):
            text = inspect.cleandoc(module.__doc__ or "")
            print(text.replace(f"python -m lmsys_unsloth.{self.module}", f"{NAME} {self.name}"))
            return 0
        sys.argv[0] = f"{NAME} {self.name}"
        return int(module.main(words))


GROUPS: dict[str, tuple[Command, ...]] = {
    "Train and score": (
        Command("train", "commands.train", "fine-tune on one fold and score it", "train data.path=train.csv"),
        Command("eval", "commands.eval", "score a run, an untrained model, several runs", "eval run=RUN"),
        Command("sweep", "sweep", "summarise a sweep, or compare runs", "sweep SWEEP"),
        Command(
            "pseudo", "pseudo", "label unlabelled rows by a model", "pseudo run=SCORED out=pseudo.csv", False
        ),
    ),
    "Use a trained run": (
        Command(
            "predict", "commands.eval", "predict the rows of a file (as eval)",
            "predict run=RUN data.path=test.csv",
        ),
        Command("export", "export", "write a model for other programs", "export run=RUN"),
        Command("serve", "serve", "answer over HTTP", "serve run=RUN"),
        Command("kit", "kit", "pack what an offline notebook needs", "kit run=RUN"),
    ),
    "Data": (
        Command(
            "data check", "commands.data_check", "say what a run would see of a file",
            "data check train.csv out=profile.html", False,
        ),
        Command(
            "data convert", "commands.data_convert", "convert a public set of preferences",
            "data convert in=train.parquet out=train.csv", False,
        ),
        Command(
            "data simulate", "simulate", "write a simulated arena", "data simulate rows=1000 out=a.csv", False
        ),
    ),
    "This machine": (
        Command("doctor", "commands.doctor", "versions, hardware, what is fast here", "doctor", False),
        Command("models", "models", "list models and what fits here", "models"),
        Command("dashboard", "dashboard", "save the wandb workspace", "dashboard"),
        Command(
            "completion", "commands.completion", "print what completes words in a shell",
            'eval "$(lmsys-unsloth completion bash)"', False,
        ),
    ),
}  # fmt: skip
"""All commands, in the order of the help."""

EXAMPLES = """\
Examples:
  lmsys-unsloth train debug=smoke                                 everything once, in a minute, on any machine
  lmsys-unsloth data check train.csv                              before the first training
  lmsys-unsloth train data=lmsys data.path=train.csv debug=preview
  lmsys-unsloth train model=llama3 prompt=v2 data=lmsys data.path=train.csv fold=0
  lmsys-unsloth eval run=runs/2026-11-23/12-00-00-llama3-v2-fold0 data.path=test.csv

Arguments are name=value. A folder conf/ where the command runs is laid over the package's configuration:
conf/prompt/mine.yaml is chosen with prompt=mine."""


def available() -> dict[str, Command]:
    """The commands of this version by name."""
    return {
        command.name: command
        for commands in GROUPS.values()
        for command in commands
        if command.file() is not None
    }


def usage() -> str:
    """The help: all commands in groups, and examples."""
    lines = [f"usage: {NAME} COMMAND [name=value …]   ({NAME} COMMAND --help, {NAME} --version)"]
    known = available()
    for title, commands in GROUPS.items():
        shown = [command for command in commands if command.name in known]
        if shown:
            lines += ["", f"{title}:", *(f"  {command.name:14} {command.summary}" for command in shown)]
    return "\n".join([*lines, "", EXAMPLES])


def main(words: Sequence[str]) -> int:
    """Run ``lmsys-unsloth WORDS``; returns the exit status, 2 for an unknown command."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"{NAME} {importlib.import_module('lmsys_unsloth').__version__}")
        return 0
    commands = available()
    for count in (2, 1):
        command = commands.get(" ".join(words[:count]))
        if command is not None:
            return command.run(words[count:])
    print(f"error: {_explain(words, sorted(commands))}", file=sys.stderr)
    return 2


def _explain(words: Sequence[str], names: Sequence[str]) -> str:
    parts = [name for name in names if name.startswith(f"{words[0]} ")]
    if parts:
        return f"{NAME} {words[0]}: needs a second word: {', '.join(parts)}"
    if "=" in words[0] or words[0].startswith("-"):
        return f"{words[0]}: the first word is a command, such as `{NAME} train {words[0].lstrip('-')}`"
    close = difflib.get_close_matches(words[0], names, n=1)
    hint = f"did you mean `{NAME} {close[0]}`?" if close else f"known: {', '.join(names)}"
    return f"{words[0]}: no such command; {hint}"


def run() -> int:
    """Entry point of the installed command."""
    return main(sys.argv[1:])
