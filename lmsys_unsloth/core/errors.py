"""The exception for problems that a user can fix, and how commands end with it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

Main = Callable[[Sequence[str]], int]
"""A command: its words in, its exit status out."""


class UserError(Exception):
    """A problem that the user can fix. The message names the value, the rule and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """


class WriteError(UserError):
    """A file can't be written: the disk is full, or the folder may not be written to."""


def prints_errors(main: Main) -> Main:
    """Decorate a command so that problems which a user can fix are printed, with exit status 2."""

    @functools.wraps(main)
    def run(words: Sequence[str]) -> int:
        try:
            return main(words)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run
