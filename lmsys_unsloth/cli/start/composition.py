"""The configuration of a training, for commands that have no run and are not run by Hydra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf

from lmsys_unsloth.cli.arguments import parse_composed, prepare_arguments, require_readable
from lmsys_unsloth.cli.start.own_conf import use_own_conf
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.resources import composing
from lmsys_unsloth.core.errors import UserError


def compose(overrides: Sequence[str], values: Mapping[str, Any]) -> Config:
    """The configuration of a training with these overrides and values, for commands that have no run.

    ``values`` are set as they are, by dotted key: a path needs no quotes.

    Raises:
        UserError: the configuration is invalid.
    """
    use_own_conf()
    require_readable(overrides)
    with composing() as hydra_compose:
        try:
            composed = hydra_compose(prepare_arguments(overrides))
        except HydraException as error:
            raise UserError(str(error)) from None
    for key, value in values.items():
        OmegaConf.update(composed, key, value)
    return parse_composed(composed, overrides)
