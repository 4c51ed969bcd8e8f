"""Every example in a docstring gives what it shows."""

from __future__ import annotations

import doctest
import importlib

import pytest
from import_graph import modules

WITH_EXAMPLES = [name for name, file in modules().items() if ">>> " in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_are_true(name: str) -> None:
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed
