"""The tokenizers of Llama 3 and Gemma 2, which the project does not contain, and that of SmolLM2."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from factories import prompt_config
from small_tokenizers import tokenizer as small_tokenizer

from lmsys_unsloth.prompting.encoding import RowEncoder

REAL_TOKENIZERS = ("llama3", "gemma2")
"""Folders of ``shared / "tokenizers"``."""


@functools.cache
def tokenizer(name: str, shared: Path | None) -> Any:
    """One of :data:`REAL_TOKENIZERS`, or ``smollm2``, which needs no ``shared``."""
    if name == "smollm2":
        return small_tokenizer(name)
    from transformers import AutoTokenizer

    assert shared is not None
    return AutoTokenizer.from_pretrained(shared / "tokenizers" / name)


@functools.cache
def encoder(name: str, shared: Path | None, template: str, max_tokens: int | None = None) -> RowEncoder:
    """A template of ``conf/prompt`` with the tokenizer of that name."""
    changes = {} if max_tokens is None else {"max_tokens": max_tokens}
    return RowEncoder(tokenizer(name, shared), prompt_config(template, **changes))
