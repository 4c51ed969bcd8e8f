"""Arguments ``name=value`` of the commands that are run as ``python -m lmsys_unsloth.NAME``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lmsys_unsloth.core.errors import UserError

Rule = tuple[str, str, str]
"""Default of an argument, a regular expression for its values, and that expression in words."""


def parse_words(words: Sequence[str], rules: Mapping[str, Rule], usage: str) -> dict[str, str]:
    """Read ``name=value`` words in any order.

    Args:
        words: the command line.
        rules: rule of each argument by name; a default that does not match makes the argument required.
        usage: the command with its arguments, for messages.

    Raises:
        UserError: an unknown name, a value of the wrong kind, or a required argument is missing.
    """
    values = {name: default for name, (default, _, _) in rules.items()}
    values |= {name: value for name, _, value in (word.partition("=") for word in words)}
    problems = [f"{name}: no such argument" for name in values if name not in rules]
    for name, (_, pattern, rule) in rules.items():
        if not re.fullmatch(pattern, values[name]):
            problems.append(f"{name}={values[name]}: {rule}")
    if problems:
        raise UserError("\n".join([*problems, f"usage: {usage}"]))
    return values
