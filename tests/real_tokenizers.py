"""The three real tokenizers and the templates of conf/prompt, loaded once for all tests."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from factories import CONF, prompt_config

from lmsys_unsloth.model import smollm2
from lmsys_unsloth.prompting.encoding import RowEncoder

TOKENIZERS = ("llama3", "gemma2", "smollm2")
TEMPLATES = tuple(sorted(path.stem for path in (CONF / "prompt").glob("v*.yaml")))


@functools.cache
def tokenizer(name: str, shared: Path) -> Any:
    from transformers import AutoTokenizer

    return (
        smollm2.tokenizer()
        if name == "smollm2"
        else AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    )


@functools.cache
def encoder(
    tokenizer_name: str, shared: Path, template_name: str, max_tokens: int | None = None
) -> RowEncoder:
    changes = {} if max_tokens is None else {"max_tokens": max_tokens}
    return RowEncoder(tokenizer(tokenizer_name, shared), prompt_config(template_name, **changes))
