"""Contradictions between values of a configuration that are each valid by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmsys_unsloth.config import placeholders
from lmsys_unsloth.config.schema import PromptConfig


def prompt_problems(prompt: PromptConfig) -> list[str]:
    """Contradictions inside a template that need no tokenizer to be seen; one line each."""
    body = [item if isinstance(item, str) else {"each_turn": item.each_turn} for item in prompt.body]
    problems = [f"prompt.body: {problem}" for problem in placeholders.problems(body)]
    for key in ("system", "reply"):
        text = getattr(prompt, key) or ""
        problems += [f"prompt: {problem}" for problem in placeholders.fixed_text_problems(key, text)]
    if not prompt.chat and not isinstance(prompt.body[-1], str):
        problems.append(
            "prompt.body: must end with a fixed text: without one the last answer's own text would decide "
            'how the model reads the answer slot; add for example "Best response:"'
        )
    if prompt.reply and not prompt.chat:
        problems.append(
            f"prompt.reply = {prompt.reply!r}: has a meaning only with prompt.chat=true; "
            "put it at the end of prompt.body"
        )
    threshold = prompt.truncation.when_longer_than
    if threshold and threshold > prompt.max_tokens:
        problems.append(
            f"prompt.truncation.when_longer_than = {threshold}: must not be above "
            f"prompt.max_tokens = {prompt.max_tokens}; lower the first or raise the second"
        )
    answers = prompt.answers.model_dump()
    if len(set(answers.values())) < len(answers):
        problems.append(f"prompt.answers = {answers}: must be three different texts")
    return problems


def _prompt_is_sound(parts: Mapping[str, Any]) -> list[str]:
    return prompt_problems(parts["prompt"]) if "prompt" in parts else []


def _prompt_fits_model(parts: Mapping[str, Any]) -> list[str]:
    model, prompt = parts.get("model"), parts.get("prompt")
    if not model or not prompt or prompt.max_tokens <= model.max_seq_length:
        return []
    return [
        f"prompt.max_tokens = {prompt.max_tokens}: must not be above model.max_seq_length = "
        f"{model.max_seq_length}; lower the first or raise the second"
    ]


def _fold_exists(parts: Mapping[str, Any]) -> list[str]:
    fold, data = parts.get("fold"), parts.get("data")
    if fold is None or not data or fold < data.folds:
        return []
    return [f"fold = {fold}: data.folds = {data.folds}, so the folds are 0 to {data.folds - 1}"]


def _model_has_a_source(parts: Mapping[str, Any]) -> list[str]:
    model = parts.get("model")
    if not model or model.path or model.package or model.repo:
        return []
    return ["model.path, model.package, model.repo: all null; one must say where the weights are"]


def _model_path_exists(parts: Mapping[str, Any]) -> list[str]:
    model = parts.get("model")
    if not model or model.path is None or Path(model.path).joinpath("config.json").is_file():
        return []
    return [f"model.path = {model.path!r}: must be a folder with a config.json (Hugging Face format)"]


CROSS_CHECKS: tuple[Callable[[Mapping[str, Any]], list[str]], ...] = (
    _prompt_is_sound,
    _prompt_fits_model,
    _fold_exists,
    _model_has_a_source,
    _model_path_exists,
)
"""Each takes the sections that are valid by themselves, keyed by name, and returns problems."""
