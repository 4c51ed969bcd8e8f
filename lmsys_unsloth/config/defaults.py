"""Defaults of keys that a stored configuration does not have, because it is older than they are."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.resources import composing

EARLIER: Mapping[str, Mapping[str, Any]] = {
    "model": {"offset": "none", "swap": "none"},
    "head": {"offset": "none"},
}
"""Values of keys in versions that did not have them, where these differ from the defaults, by section."""


def with_new_keys(stored: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with values for keys and sections that did not exist when it was written."""
    before = {
        name: {**section, **EARLIER.get(name, {})} if isinstance(section, dict) else section
        for name, section in current.items()
    }
    return before | {
        name: {**before[name], **section} if isinstance(section, dict) and name in before else section
        for name, section in stored.items()
    }


def with_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`with_new_keys` with the defaults of ``conf/``."""
    defaults = {name: value for name, value in _composed().items() if name in Config.model_fields}
    return with_new_keys(stored, defaults)


@functools.cache
def _composed() -> dict[str, Any]:
    from omegaconf import OmegaConf

    with composing() as compose:
        values: Any = OmegaConf.to_container(compose(), resolve=True)
    return dict(values)
