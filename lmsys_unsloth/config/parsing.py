"""The configuration of a run: validation of what Hydra composed, with all problems in one message."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from lmsys_unsloth.config import schema
from lmsys_unsloth.config.checks import contradictions
from lmsys_unsloth.config.engine_schema import EngineConfig
from lmsys_unsloth.config.head_schema import HeadConfig
from lmsys_unsloth.config.prompt_schema import PromptConfig
from lmsys_unsloth.core.errors import UserError


class Config(schema.Section):
    """The complete configuration of one run, as stored in ``RUN/config.yaml``."""

    seed: NonNegativeInt
    """Random seed of everything except the folds and the simulated arena."""
    fold: NonNegativeInt
    """Fold to validate on; the others are for training."""
    model: schema.ModelConfig
    prompt: PromptConfig
    lora: schema.LoraConfig
    head: HeadConfig
    data: schema.DataConfig
    train: schema.TrainConfig
    eval: schema.EvalConfig
    engine: EngineConfig
    logger: schema.LoggerConfig
    debug: schema.DebugConfig


def parse_config(composed: Mapping[str, Any]) -> Config:
    """Validate a composed, resolved configuration.

    Args:
        composed: nested plain mappings as from ``OmegaConf.to_container(cfg, resolve=True)``.

    Raises:
        UserError: one message that lists every unknown key, wrong type, value out of range and
            contradiction between sections.
    """
    details: list[Any] = []
    try:
        Config.model_validate(dict(composed))
    except ValidationError as error:
        details = error.errors()
    invalid = {detail["loc"][0] for detail in details}
    valid = {
        key: TypeAdapter(field.rebuild_annotation()).validate_python(composed[key])
        for key, field in Config.model_fields.items()
        if key not in invalid
    }
    problems = [_explain(detail) for detail in details] + contradictions(valid)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError("\n  ".join([f"{count} in the configuration:", *problems]))
    return Config(**valid)


def is_known_key(dotted: str) -> bool:
    """Whether ``dotted`` (``lora.r``) is a key of the configuration, or lies within the value of one."""
    kind: Any = Config
    for name in dotted.split("."):
        if not hasattr(kind, "model_fields"):  # within a list or a plain value
            return True
        if name not in kind.model_fields:
            return False
        kind = kind.model_fields[name].annotation
    return True


def kind_of(dotted: str) -> Any:
    """Type of the values of a key; None for a key that is not known.

    >>> kind_of("train.fast"), kind_of("train.fats")
    (<class 'bool'>, None)
    """
    kind: Any = Config
    for name in dotted.split("."):
        fields = getattr(kind, "model_fields", {})
        if name not in fields:
            return None
        kind = fields[name].annotation
    return kind


def _explain(detail: Any) -> str:
    """One pydantic error as ``lora.r = 'abc': rule``."""
    *section, name = detail["loc"]
    dotted = ".".join(map(str, detail["loc"]))
    if detail["type"] == "missing":
        return f"{dotted}: missing; it must be given"
    if detail["type"] == "extra_forbidden":
        known: Any = Config.model_fields
        for part in section:
            known = known[part].annotation.model_fields
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {'.'.join([*section, *close])}?" if close else f"known: {', '.join(known)}"
        return f"{dotted}: no such key; {hint}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{dotted} = {detail['input']!r}: {message[0].lower()}{message[1:]}"
