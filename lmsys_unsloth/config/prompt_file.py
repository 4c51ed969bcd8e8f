"""A user's own template file: ``prompt.file=my_prompt.yaml`` instead of a template of ``conf/prompt/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lmsys_unsloth.core.errors import UserError


def use_prompt_file(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Replace the ``prompt`` section by the content of the file that it names, if any.

    The result contains the template and no longer names the file, so that a run can be repeated after
    the file has changed or been deleted.

    Args:
        settings: composed configuration, not yet validated.
        overrides: arguments of the command line; those of ``prompt`` keys apply to the file's content too.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    prompt = settings.get("prompt")
    if not isinstance(prompt, Mapping) or not isinstance(prompt.get("file"), str):
        return dict(settings)
    path = Path(prompt["file"]).expanduser()
    typed = [override.lstrip("+") for override in overrides]
    kept = [o for o in typed if o.startswith("prompt.") and not o.startswith("prompt.file=")]
    changes: Any = OmegaConf.to_container(OmegaConf.from_dotlist(kept))
    template = {"name": path.stem, "source": f"file {path.name}", **_read(path)}
    return {**settings, "prompt": _merge(template, changes.get("prompt", {}))}


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested ``base`` with ``changes``; OmegaConf's own merge would interpret ``${…}`` in the template."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    where = f"prompt.file = {str(path)!r}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: can't be read ({error}).\n"
            "  Name a YAML file with a template; docs/prompts.md shows one."
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML:\n  {error}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{where}: must hold a mapping with `answers` and `body`, but holds {type(content).__name__}; "
            "docs/prompts.md shows one."
        )
    content.pop("defaults", None)  # a copy of a file of conf/prompt/ has it; its values are the schema's own
    return {str(key): value for key, value in content.items()}
