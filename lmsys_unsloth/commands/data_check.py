"""Say what a run would see of a file, and write a profile with figures.

    lmsys-unsloth data check train.csv                           writes train-profile.html
    lmsys-unsloth data check test.csv against=train.csv          counts rows that both files have
    lmsys-unsloth data check train.csv out=page.html data.layout=plain data.group_by=[topic]

Any key of the section ``data`` may follow. Bad rows are listed with their reasons; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmsys_unsloth.core.errors import UserError, prints_errors


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    path: str
    out: Path
    against: str | None
    overrides: list[str]


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Read the words of the command line, in any order.

    Raises:
        UserError: no file, or a word that is none of the arguments.
    """
    named = dict(word.split("=", 1) for word in words if "=" in word and not Path(word).is_file())
    files = [word for word in words if word.partition("=")[0] not in named]
    problems = [
        f"{name}: no such argument; known: out, against, and keys of data, such as data.layout"
        for name in named
        if name not in ("out", "against") and not name.startswith("data.")
    ]
    if len(files) != 1:
        found = f"{', '.join(files)}: one file at a time" if files else "which file?"
        problems.append(f"{found}; usage: lmsys-unsloth data check FILE [out=PAGE.html] [against=FILE]")
    out = named.pop("out", "")
    if out and not out.endswith(".html"):
        problems.append(f"out={out}: must end in .html")
    if problems:
        raise UserError("\n".join(problems))
    stem = Path(files[0]).name.partition(".")[0].replace("hf:", "")
    against = named.pop("against", None)
    overrides = [f"{name}={value}" for name, value in named.items()]
    return Arguments(files[0], Path(out or f"{stem}-profile.html"), against, overrides)


@prints_errors
def main(words: Sequence[str]) -> int:
    """Run the command; 0 when the file is described, 2 when it can't be."""
    arguments = parse_arguments(words)
    from lmsys_unsloth.cli.start.composition import compose
    from lmsys_unsloth.data.sources import check_source

    config = compose(["data=lmsys", *arguments.overrides], {"data.path": arguments.path}).data
    for path in filter(None, (arguments.path, arguments.against)):
        if not path.startswith("hf:"):
            check_source(path, layout=config.layout, labelled=False, soft_labels=True)
    from lmsys_unsloth.data_tools.profile import make_profile  # slow imports
    from lmsys_unsloth.data_tools.profile_page import write_profile
    from lmsys_unsloth.data_tools.profile_text import print_profile

    profile = make_profile(config, arguments.against)
    print_profile(profile)
    write_profile(profile, arguments.out)
    print(f"profile: {arguments.out}")
    return 0
