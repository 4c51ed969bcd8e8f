"""The import graph of the package, read from its source.

Print it folder by folder with ``python tests/import_graph.py``.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

PACKAGE = "lmsys_unsloth"
REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = (
    "core",
    "config",
    "data",
    "prompting",
    "model",
    "train",
    "evaluate",
    "predict",
    "report",
    "data_tools",
    "cli",
    "sweep",
    "export",
    "serve",
    "kit",
    "commands",
)
"""Each folder may import itself and the folders before it."""
COMMANDS = ("simulate", "dashboard", "pseudo", "models", "__main__")
"""Modules run as ``python -m lmsys_unsloth.NAME`` or imported by users; they may import every folder."""


def module_name(file: Path) -> str:
    """``lmsys_unsloth.data.folds`` for ``lmsys_unsloth/data/folds.py``."""
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    """All modules of the package by name."""
    return {module_name(file): file for file in sorted((REPOSITORY / PACKAGE).rglob("*.py"))}


def imports(file: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports anywhere: at the top, in functions, for type checking."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in known else node.module)
    return found & known - {PACKAGE}  # its version, and a predictor for users


def graph() -> dict[str, set[str]]:
    """Imported modules of every module."""
    files = modules()
    return {name: imports(file, set(files)) - {name} for name, file in files.items()}


def folder(module: str) -> str:
    """First folder of a module below the package: ``data`` for ``lmsys_unsloth.data.folds``."""
    return f"{module}.".split(".")[1]


def drawing() -> str:
    """Folders in order, each with the folders it imports and how many imports there are."""
    edges = Counter((folder(a), folder(b)) for a, targets in graph().items() for b in targets)
    lines = []
    for name in (*FOLDERS, *COMMANDS):
        targets = [f"{target} {edges[name, target]}" for target in FOLDERS if (name, target) in edges]
        lines.append(f"{name:10} → {', '.join(targets) or '(nothing)'}")
    return "\n".join([*lines, f"{len(modules())} modules, {sum(edges.values())} imports"])


if __name__ == "__main__":
    print(drawing())
