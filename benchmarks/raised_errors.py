"""Which messages to users no test raises.

    RAISED=raised.txt python -m pytest -p raised_errors
    python benchmarks/raised_errors.py raised.txt

The first command runs tests, all or some, and notes where each :class:`~lmsys_unsloth.core.errors.UserError`
is made, in the processes of pytest; commands that tests start in other processes are not seen. The second
one lists the places in the package that are missing there.
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("UserError", "WriteError")


def pytest_configure(config: Any) -> None:
    """Note the file and line of every such error that is made."""
    from lmsys_unsloth.core.errors import UserError

    seen: set[str] = set()
    made = UserError.__init__

    def noting(self: UserError, *arguments: Any) -> None:
        frame = sys._getframe(1)
        place = f"{Path(frame.f_code.co_filename).as_posix()}:{frame.f_lineno}"
        if place not in seen:
            seen.add(place)
            with open(os.environ["RAISED"], "a", encoding="utf-8") as file:
                file.write(f"{place}\n")
        made(self, *arguments)

    UserError.__init__ = noting  # type: ignore[method-assign]


def places() -> dict[tuple[str, int, int], str]:
    """First and last line of each place in the package that makes such an error, with its beginning."""
    found = {}
    for path in sorted((ROOT / "lmsys_unsloth").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                key = (str(path.relative_to(ROOT)), node.lineno, node.end_lineno or node.lineno)
                found[key] = " ".join(ast.unparse(node).split())[:90]
    return found


def main() -> int:
    raised: dict[str, set[int]] = {}
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        file, _, number = line.rpartition(":")
        raised.setdefault(file.rpartition("/lmsys_unsloth/")[2], set()).add(int(number))
    known = places()
    missing = [
        (file, first, text)
        for (file, first, last), text in known.items()
        if not raised.get(file.removeprefix("lmsys_unsloth/"), set()) & set(range(first, last + 1))
    ]
    for file, line, text in missing:
        print(f"{file}:{line}: {text}")
    print(f"{len(known)} places, {len(missing)} not seen")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
