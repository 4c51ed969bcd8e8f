"""Pages of the documentation that follow from the code are current, and every key has a meaning."""

from __future__ import annotations

import pytest
import reference_pages


@pytest.mark.parametrize("name", list(reference_pages.PAGES))
def test_a_page_is_current(name: str) -> None:
    written = (reference_pages.ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == reference_pages.PAGES[name](), "run python benchmarks/reference_pages.py"


@pytest.mark.parametrize("section", list(reference_pages.SECTIONS))
def test_every_key_has_a_meaning(section: str) -> None:
    described, keys = reference_pages.fields(reference_pages.SECTIONS[section])
    assert described and keys
    assert not [key for key, (_, meaning) in keys.items() if not meaning]
