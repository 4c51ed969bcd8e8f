"""The example of docs/models.md runs, and adds a family that the fast decoder computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lmsys_unsloth.model.families import known

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"


@pytest.mark.numeric
def test_the_example_adds_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "FAMILIES", dict(known.FAMILIES))
    section = PAGE.read_text(encoding="utf-8").partition("## Adding a family")[2]
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(blocks) == 3 and len(blocks[1].splitlines()) < 10
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert known.FAMILIES["sandwich"] is names["SANDWICH"]
