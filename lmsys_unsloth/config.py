"""One run's configuration as a whole: Hydra's composition in, frozen objects or one list of problems out.

Hydra composes YAML; :func:`parse` turns the result into frozen objects or raises one
:class:`~lmsys_unsloth.settings.UserError` that lists every problem, those between sections included.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, NonNegativeInt, TypeAdapter, ValidationError

from lmsys_unsloth.prompting import template
from lmsys_unsloth.settings import (
    DataConfig,
    DebugConfig,
    EvalConfig,
    LoggerConfig,
    LoraConfig,
    ModelConfig,
    PromptConfig,
    Section,
    TrainConfig,
    UserError,
)


class Config(Section):
    """One run, completely: what ``RUN/config.yaml`` holds."""

    seed: NonNegativeInt
    fold: NonNegativeInt
    model: ModelConfig
    prompt: PromptConfig
    lora: LoraConfig
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig
    logger: LoggerConfig
    debug: DebugConfig


def parse(composed: Mapping[str, Any]) -> Config:
    """Turn a composed, resolved configuration into typed objects.

    Args:
        composed: plain nested mappings as from ``OmegaConf.to_container(cfg, resolve=True)``.

    Raises:
        UserError: one message that lists every unknown key, wrong type, value out of range and
            contradiction between sections.
    """
    problems: list[str] = []
    parts: dict[str, Any] = {}
    for key, field in Config.model_fields.items():
        if key not in composed:
            problems.append(f"{key}: missing; every run needs it")
            continue
        kind = field.annotation
        try:
            if isinstance(kind, type) and issubclass(kind, Section):
                parts[key] = kind.model_validate(composed[key])
            else:
                parts[key] = _plain_value(Annotated[kind, *field.metadata], composed[key])
        except ValidationError as error:
            problems += [_explain(key, kind, detail) for detail in error.errors()]
    for key in composed.keys() - Config.model_fields.keys():
        problems.append(_unknown(key, Config.model_fields))
    for check in CROSS_CHECKS:
        problems += check(parts)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError("\n  ".join([f"{count} in the configuration:", *problems]))
    return Config(**parts)


def _plain_value(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).validate_python(value, strict=True)


def is_known_key(dotted: str) -> bool:
    """Whether ``dotted`` (``lora.r``) names a value of the schema."""
    kind: Any = Config
    for name in dotted.split("."):
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return True  # inside a free mapping or list: the value's own type decides
        if name not in kind.model_fields:
            return False
        kind = kind.model_fields[name].annotation
    return True


def _explain(section: str, kind: Any, detail: Any) -> str:
    """One pydantic error as ``lora.r = 'abc': rule``."""
    names = [str(name) for name in detail["loc"]]
    dotted = ".".join([section, *names])
    match detail["type"]:
        case "extra_forbidden":
            for name in names[:-1]:
                kind = kind.model_fields[name].annotation
            return _unknown(dotted, kind.model_fields)
        case "missing":
            return f"{dotted}: missing; it must be given"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{dotted} = {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _unknown(dotted: str, known: Iterable[str]) -> str:
    prefix, _, name = dotted.rpartition(".")
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        hint = f"did you mean {prefix + '.' if prefix else ''}{close[0]}?"
    else:
        hint = f"known: {', '.join(known)}"
    return f"{dotted}: no such key; {hint}"


def prompt_problems(prompt: PromptConfig) -> list[str]:
    """Contradictions inside a template that need no tokenizer to be seen; one line each."""
    body = [item if isinstance(item, str) else {"each_turn": item.each_turn} for item in prompt.body]
    problems = [f"prompt.body: {problem}" for problem in template.problems(body)]
    for key in ("system", "reply"):
        text = getattr(prompt, key) or ""
        problems += [f"prompt: {problem}" for problem in template.fixed_text_problems(key, text)]
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
