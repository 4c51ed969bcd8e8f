"""Write the pages that follow from the code: ``configuration.md``, ``modules.md``, ``troubleshooting.md``.

    python benchmarks/reference_pages.py

A test checks that they are current.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "tests", "tests/cli")]

SCHEMAS = ("schema.py", "prompt_schema.py", "engine_schema.py", "head_schema.py", "sweep_schema.py")
SECTIONS = {
    "model": "ModelConfig", "prompt": "PromptConfig", "lora": "LoraConfig", "head": "HeadConfig",
    "data": "DataConfig", "train": "TrainConfig", "eval": "EvalConfig", "engine": "EngineConfig",
    "logger": "LoggerConfig", "debug": "DebugConfig", "launcher": "LauncherConfig", "search": "SearchConfig",
}  # fmt: skip
"""Classes that describe the sections, in the order of the page."""


def fields(name: str) -> tuple[str, dict[str, tuple[str, str]]]:
    """Docstring of a section's class; type and meaning of each of its keys."""
    for file in SCHEMAS:
        tree = ast.parse((ROOT / "lmsys_unsloth" / "config" / file).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                found: dict[str, tuple[str, str]] = {}
                for before, after in zip(node.body, [*node.body[1:], None], strict=True):
                    if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
                        meaning = ""
                        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                            meaning = " ".join(str(after.value.value).split())
                        found[before.target.id] = (ast.unparse(before.annotation), meaning)
                return ast.get_docstring(node) or "", found
    raise KeyError(name)


def configuration() -> str:
    """The page with every key: type, default, meaning."""
    from omegaconf import OmegaConf

    from lmsys_unsloth.config.resources import composing

    with composing() as compose:
        composed: Any = OmegaConf.to_container(compose(["search=default"]), resolve=True)
    lines = [
        "# Configuration",
        "",
        "Every key, made from `lmsys_unsloth/config/` by `python benchmarks/reference_pages.py`. "
        "Defaults are those of `python train.py`; `search` and `launcher` belong to sweeps. "
        "`lmsys-unsloth train --help` lists the presets of each group.",
        "",
        "`seed`: seed of all random numbers. `fold`: the fold that is held out. `resume`: run directory to "
        "continue.",
        "",
    ]
    for section, name in SECTIONS.items():
        described, keys = fields(name)
        lines += [
            f"## {section}",
            "",
            " ".join(described.split()),
            "",
            "| key | type | default | meaning |",
            "|---|---|---|---|",
        ]
        for key, (kind, meaning) in keys.items():
            default = composed.get(section, {}).get(key, "")
            cells = (f"`{section}.{key}`", f"`{_plain(kind)}`", _default(default), meaning.replace("``", "`"))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


WORDS = {
    " | ": " or ", "Literal[": "[", "'": "", "None": "null", "PositiveInt": "integer above 0",
    "NonNegativeInt": "integer from 0", "PositiveFloat": "number above 0",
    "NonNegativeFloat": "number from 0",
}  # fmt: skip
"""Python's types in words."""


def _plain(kind: str) -> str:
    """A type as a reader of YAML knows it."""
    for old, new in WORDS.items():
        kind = kind.replace(old, new)
    return kind if len(kind) < 60 else f"{kind[:57]}…"


def _default(value: Any) -> str:
    if isinstance(value, dict | list) and len(str(value)) > 40:
        return "(several)"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = " ".join(text.split())
    return f"`{text[:40]}{'…' if len(text) > 40 else ''}`" if text else ""


def modules() -> str:
    """The page with the imports between the folders of the package."""
    from import_graph import FOLDERS, folder, graph

    edges = Counter((folder(a), folder(b)) for a, targets in graph().items() for b in targets)
    lines = [
        "# Modules",
        "",
        "Folders of the package and the imports between them, made by "
        "`python benchmarks/reference_pages.py`. Each folder imports only folders before it, which a test "
        "enforces; numbers count imports.",
        "",
        "| folder | imports |",
        "|---|---|",
    ]
    for name in FOLDERS:
        targets = [
            f"{other} ({edges[name, other]})" for other in FOLDERS if other != name and edges[name, other]
        ]
        lines.append(f"| `{name}` | {', '.join(targets) or 'none'} |")
    return "\n".join([*lines, ""])


START, END = "<!-- likeliest mistakes -->", "<!-- end -->"
"""Between them the table of mistakes stands in its page."""


def troubleshooting() -> str:
    """The page with the likeliest mistakes; the rest of it is written by hand."""
    from likely_mistakes import MISTAKES

    rows = ["| what was typed | the answer says |", "|---|---|"]
    for words, answer in MISTAKES.values():
        cells = (f"`{words[0]} {' '.join(words[1:])}`", answer)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    return "\n".join([before + START, *rows, END + rest.partition(END)[2]])


PAGES = {"configuration.md": configuration, "modules.md": modules, "troubleshooting.md": troubleshooting}


def main() -> int:
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")
        print(f"docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
