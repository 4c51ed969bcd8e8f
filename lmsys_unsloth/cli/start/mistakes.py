"""Mistakes in the arguments themselves, explained before Hydra reads them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lmsys_unsloth.cli.start.own_conf import options
from lmsys_unsloth.cli.start.program import asks_for_sweep, is_eval, program
from lmsys_unsloth.config.parsing import kind_of

_WITHOUT_VALUE = {"-h", "--help", "--hydra-help", "--version", "--resolve", "--run", "-r", "-m", "--multirun"}
_WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--info", "-i", "--experimental-rerun", "--shell-completion", "-sc",
}  # fmt: skip
_OTHER_CONFIGURATION = {"--config-path", "-cp", "--config-dir", "-cd"}
_EVAL_KEYS = ("run", "runs")


def find_mistakes(words: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Every mistake that shows in the words alone, one text each.

    Args:
        words: the command line.
        groups: names of configuration groups.

    >>> find_mistakes(["model", "=", "llama3"], ["model"])
    ["model = llama3: put no spaces around '=': model=llama3"]
    """
    if "=" in words:
        at = words.index("=")
        spaced = [*words[max(at - 1, 0) : at], "=", *words[at + 1 : at + 2]]
        return [f"{' '.join(spaced)}: put no spaces around '=': {''.join(spaced)}"]
    found: list[str] = []
    takes_value = False
    sweep = asks_for_sweep(words)
    known = groups if _OTHER_CONFIGURATION.isdisjoint(word.partition("=")[0] for word in words) else ()
    for word in words:
        name = word.partition("=")[0]
        if word.startswith("-"):
            takes_value = word in _WITH_VALUE
            if name not in _WITHOUT_VALUE | _WITH_VALUE:
                found.append(_option(word))
        elif takes_value:
            takes_value = False
        elif "=" not in word and not word.startswith("~"):
            found.append(_not_an_assignment(word))
        else:
            found += _assignment(word, known, sweep)
    if not any(word.startswith(("-", "resume=", "hydra.")) for word in words):
        found += [
            f"runs: {reason}; start in another folder" for reason in [_not_writable(Path("runs"))] if reason
        ]
    return found


def _option(word: str) -> str:
    name, separator, value = word.lstrip("-").partition("=")
    close = difflib.get_close_matches(word, _WITHOUT_VALUE | _WITH_VALUE, n=1)
    if separator:
        return f"{word}: arguments have no dashes: {name}={value}"
    hint = f"did you mean {close[0]}?" if close else f"arguments are name=value: {name}=VALUE"
    return f"{word}: no such option; {hint}"


def _not_an_assignment(word: str) -> str:
    path = Path(word)
    if word in ("train", "eval"):
        return f"{word}: is a command itself, not an argument of `{program()}`; leave it out"
    if (path / "config.yaml").is_file():
        keys = "run" if is_eval() else "resume"
        return f"{word}: arguments are name=value; this is a run directory: {keys}={word}"
    if path.is_file():
        return f"{word}: arguments are name=value; to read this file: data=lmsys data.path={word}"
    return f"{word}: arguments are name=value, without spaces: {word}=VALUE"


def _assignment(word: str, groups: Sequence[str], sweep: bool) -> Iterator[str]:
    """Mistakes in ``name=value``."""
    name, _, value = word.partition("=")
    key = name.lstrip("+")
    if key in groups and name != key:
        yield f"{word}: a group is chosen without '+': {key}={value}"
    elif key in groups and not value:
        yield f"{word}: which one? {_known(key)}"
    elif key in groups:
        # what is no plain name is left to Hydra: choice(a,b), [a,b], ${…}
        for option in value.split(",") if sweep else [value]:
            if re.fullmatch(r"[\w.-]+", option) and option != "null" and option not in options(key):
                close = difflib.get_close_matches(option, options(key), n=1)
                hint = f"did you mean {key}={close[0]}?" if close else _known(key)
                yield f"{key}={option}: no such {key}; {hint}"
    if key == "model.name" and value in options("model"):
        yield f"{word}: names a model without its settings; choose it: model={value}"
    if key in _EVAL_KEYS and not is_eval():
        yield f"{word}: an argument of eval.py; a training is continued with resume={value or 'RUN'}"
    yield from _value(word, key, value, sweep)
    if key == "hydra.run.dir" and "${" not in value and (reason := _not_writable(Path(value))):
        yield f"{word}: {reason}; choose another folder"


def _value(word: str, key: str, value: str, sweep: bool) -> Iterator[str]:
    """Mistakes in the form of a value: a list without brackets, or characters that need quotes."""
    is_list = key == "runs" or get_origin(kind_of(key)) is list
    if is_list and value and value != "null" and not sweep and value[0] not in "[$":
        yield f"{word}: is a list: '{key}=[{value}]'"
        return
    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException:
        plain = value.strip("'\"")
        yield f"""{word}: has characters with a meaning of their own; quote the value: '{key}="{plain}"'"""
        return
    if parsed.is_sweep_override() and not sweep:
        yield (
            f"{word}: several values start a sweep, one run for each: add -m; for a text with commas: "
            f"""'{key}="{value}"'"""
        )


def _known(group: str) -> str:
    return "known: " + ", ".join(sorted(name for name in options(group) if not name.startswith("_")))


def _not_writable(folder: Path) -> str | None:
    """Why nothing can be written into a folder that may not exist yet; None if nothing speaks against it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is a file, not a folder"
    return None if os.access(existing, os.W_OK) else f"no permission to write into {existing.absolute()}"
