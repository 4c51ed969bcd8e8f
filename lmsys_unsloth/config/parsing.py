"""One run's configuration as a whole: Hydra's composition in, frozen objects or one list of problems out.

Hydra composes YAML; :func:`parse_config` turns the result into frozen objects or raises one
:class:`~lmsys_unsloth.settings.UserError` that lists every problem, those between sections included.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, NonNegativeInt, TypeAdapter, ValidationError

from lmsys_unsloth.config.checks import CROSS_CHECKS
from lmsys_unsloth.config.schema import (
    DataConfig,
    DebugConfig,
    EvalConfig,
    LoggerConfig,
    LoraConfig,
    ModelConfig,
    PromptConfig,
    Section,
    TrainConfig,
)
from lmsys_unsloth.core.errors import UserError


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


def parse_config(composed: Mapping[str, Any]) -> Config:
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
