"""The three real tokenizers and the templates of conf/prompt, loaded once for all tests."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lmsys_unsloth import smollm2
from lmsys_unsloth.prompting.tokens import RowEncoder
from lmsys_unsloth.settings import PromptConfig

CONF = Path(__file__).resolve().parent.parent / "conf"
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
def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings: Any = OmegaConf.to_container(compose("train", list(overrides)), resolve=True)
    return settings


def template(name: str, **changes: Any) -> PromptConfig:
    """A template of conf/prompt; ``truncation={…}`` changes single values of that section."""
    settings = {**composed(f"prompt={name}")["prompt"]}
    truncation = {**settings["truncation"], **changes.pop("truncation", {})}
    budget = changes.get("max_tokens", settings["max_tokens"])
    if truncation["when_longer_than"] and truncation["when_longer_than"] > budget:
        truncation["when_longer_than"] = None
    return PromptConfig.model_validate({**settings, **changes, "truncation": truncation})


@functools.cache
def encoder(
    tokenizer_name: str, shared: Path, template_name: str, max_tokens: int | None = None
) -> RowEncoder:
    changes = {} if max_tokens is None else {"max_tokens": max_tokens}
    return RowEncoder(tokenizer(tokenizer_name, shared), template(template_name, **changes))
