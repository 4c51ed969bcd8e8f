"""The exception for problems that a user can fix."""

from __future__ import annotations


class UserError(Exception):
    """A problem that the user can fix. The message names the value, the rule and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """


class WriteError(UserError):
    """A file can't be written: the disk is full, or the folder may not be written to."""
