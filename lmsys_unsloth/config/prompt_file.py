"""A user's own template file: ``prompt.file=my_prompt.yaml`` instead of one of ``conf/prompt/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lmsys_unsloth.core.errors import UserError


def use_prompt_file(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings with the ``prompt`` section taken from the file it names, if it names one.

    The result no longer names the file: a run keeps the template itself, so it can be repeated when
    the file has changed or gone.

    Args:
        settings: composed configuration, not yet validated.
        overrides: what was typed (``prompt.max_tokens=512``); values for the prompt stay in force.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    prompt = settings.get("prompt")
    if not isinstance(prompt, Mapping) or not isinstance(prompt.get("file"), str):
        return dict(settings)
    path = Path(prompt["file"]).expanduser()
    typed = [o.lstrip("+") for o in overrides if o.lstrip("+").startswith("prompt.")]
    values = OmegaConf.from_dotlist([o for o in typed if not o.startswith("prompt.file=")])
    changes: Any = OmegaConf.to_container(values)
    template = {"name": path.stem, "source": f"file {path.name}", **_read(path)}
    return {**settings, "prompt": _merged(template, changes.get("prompt", {}))}


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prompt.file = {str(path)!r}: can't be read ({error}).\n"
            "  Name a YAML file with a template; docs/prompts.md shows one."
        ) from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"prompt.file = {str(path)!r} is not YAML:\n  {error}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"prompt.file = {str(path)!r}: must hold a mapping with `answers` and `body`, "
            f"but holds {type(content).__name__}; docs/prompts.md shows one."
        )
    return {str(key): value for key, value in content.items()}
