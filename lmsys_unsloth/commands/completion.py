"""Print a script that completes words of ``lmsys-unsloth`` in a shell: commands, keys, values, files.

    eval "$(lmsys-unsloth completion bash)"       in ~/.bashrc
    eval "$(lmsys-unsloth completion zsh)"        in ~/.zshrc, after compinit
    lmsys-unsloth completion fish > ~/.config/fish/completions/lmsys-unsloth.fish

The script calls ``lmsys-unsloth completion words SHELL LINE``, which prints one candidate a line.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from lmsys_unsloth.commands.main import NAME, available

_BASH = """\
_lmsys_unsloth() {
  local IFS=$'\\n'
  COMPREPLY=($(lmsys-unsloth completion words %s "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
}
complete -o nospace -F _lmsys_unsloth lmsys-unsloth
"""
SCRIPTS = {
    "bash": _BASH % "bash",
    "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + _BASH % "zsh",
    "fish": f"complete -c {NAME} -f -a '({NAME} completion words fish (commandline -cp))'\n",
}


def candidates(line: str) -> list[str]:
    """The words that may stand where ``line`` ends.

    >>> candidates("lmsys-unsloth mod")
    ['models ']
    >>> candidates("lmsys-unsloth train model=smollm2-")
    ['model=smollm2-1.7b ']
    """
    words = line.split()
    current = "" if line[-1:].isspace() or len(words) < 2 else words.pop()
    before = words[1:]
    names = [name.split() for name in available()]
    following = {name[len(before)] for name in names if name[: len(before)] == before != name}
    if following:
        found = [f"{word} " for word in sorted(following)]
    elif before[:1] in (["train"], ["eval"]):
        found = list(_settings(current))
    else:
        found = _files("", current)
    return [word for word in found if word.startswith(current)]


def _settings(current: str) -> Iterator[str]:
    """Keys of the configuration, or values of the key that ``current`` sets."""
    from lmsys_unsloth.cli.arguments import COMMAND_KEYS, GROUPS
    from lmsys_unsloth.cli.start.own_conf import options
    from lmsys_unsloth.config.parsing import Config, kind_of

    key, separator, value = current.partition("=")
    if separator and key in GROUPS:
        yield from (f"{key}={name} " for name in sorted(options(key)) if not name.startswith("_"))
    elif separator:
        kind = kind_of(key)
        values = ["true", "false"] if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()
        yield from (f"{key}={value} " for value in values)
        if not values:
            yield from _files(f"{key}=", value)
    else:
        yield from (f"{key}=" for key in (*GROUPS, *COMMAND_KEYS, "seed", "fold"))
        sections = {name: field.annotation for name, field in Config.model_fields.items()}
        for section, model in sections.items():
            keys: Any = getattr(model, "model_fields", {})
            yield from (f"{section}.{name}=" for name in keys) if "." in current else [f"{section}."]


def _files(prefix: str, start: str) -> list[str]:
    """Files and folders that begin with ``start``, each with ``prefix`` before it."""
    found = sorted(glob.glob(f"{glob.escape(start)}*"))
    return [f"{prefix}{path}{'/' if os.path.isdir(path) else ' '}" for path in found]


def main(words: Sequence[str]) -> int:
    """Run the command; 0, or 2 for an unknown shell."""
    if words[:1] == ["words"] and len(words) == 3:
        _, shell, line = words
        for word in candidates(line):
            # bash takes = for the end of a word, and replaces what follows it
            print(word.rpartition("=")[2] if shell == "bash" and "=" in line.split()[-1] else word)
        return 0
    if len(words) != 1 or words[0] not in SCRIPTS:
        print(f"usage: {NAME} completion {'|'.join(SCRIPTS)}", file=sys.stderr)
        return 2
    print(SCRIPTS[words[0]], end="")
    return 0
