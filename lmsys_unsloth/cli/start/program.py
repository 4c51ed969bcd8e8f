"""How the running command was called: ``python train.py`` in a checkout, or ``lmsys-unsloth train``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

COMMAND = "lmsys-unsloth"
"""The installed command. It sets ``sys.argv[0]`` to itself and the word that follows it."""


def called_as_command() -> bool:
    """Whether the installed command runs, not a script of a checkout."""
    return Path(sys.argv[0]).name.startswith(f"{COMMAND} ")


def program() -> str:
    """How to call the running command again, without its arguments."""
    name = Path(sys.argv[0]).name
    return name if called_as_command() else f"python {name}"


def is_eval() -> bool:
    """Whether the running command is ``eval``."""
    return Path(sys.argv[0]).name in ("eval.py", f"{COMMAND} eval", f"{COMMAND} predict")


def asks_for_sweep(words: Sequence[str]) -> bool:
    """Whether the command line asks for several jobs."""
    ours = () if is_eval() else ("cv=", "search=")  # eval.py cv=DIR predicts with a cross-validation
    return any(
        word in ("-m", "--multirun") or word.startswith((*ours, "hydra.mode=MULTIRUN")) for word in words
    )


def in_words_of_the_caller(text: str) -> str:
    """Name commands in a message as they were called.

    >>> in_words_of_the_caller("try `python train.py`")
    'try `python train.py`'
    """
    if not called_as_command():
        return text
    return re.sub(r"\b(?:python )?(train|eval)\.py\b", rf"{COMMAND} \1", text)
