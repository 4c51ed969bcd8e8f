"""What a predictor is loaded from: run directories, a cross-validation, exported models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsys_unsloth.config.parsing import Config, parse_config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate import adjustment
from lmsys_unsloth.evaluate.stacking import Calibration

EXPORT = "export.json"
"""File of an export folder that says what was exported, how, and what the check found."""

GGUF = "model.gguf"
"""Name of a GGUF file in an export folder."""


@dataclass(frozen=True)
class Trained:
    """A trained model: its settings, and where its weights are."""

    config: Config
    adapter: Path | None
    """Folder of the trained weights; None if they are part of the exported model."""
    head: Path | None = None
    """Folder of the trained head and of its offset, if it is not ``adapter``."""


@dataclass(frozen=True)
class Source:
    """Models that are averaged, and how their predictions are adjusted."""

    members: Sequence[Trained]
    config: Config
    """Its section ``eval`` holds for all members."""
    calibration: Calibration | None
    """None: predictions are the models' own, averaged."""


Named = str | Path
"""A run directory, the directory of a cross-validation, or an export folder."""


def open_source(named: Named | Sequence[Named], changes: Sequence[str] = ()) -> Source:
    """Read settings and calibration; weights are not read.

    Args:
        named: one of :data:`Named`, or several run directories.
        changes: single values that replace the stored ones, as on the command line: ``eval.swap=average``.

    Raises:
        UserError: a folder is none of these, a run is unfinished, or the settings are not of this version.
    """
    paths = [Path(named)] if isinstance(named, str | Path) else [Path(path) for path in named]
    if not paths:
        raise UserError("no run is named; give a run directory, or several.")
    if len(paths) == 1 and (paths[0] / EXPORT).is_file():
        return _exported(paths[0], changes)
    runs = [Run.open(path) for path in paths]
    config = _settings(runs[0].settings(), runs[0].config, changes)
    if len(runs) == 1 and not runs[0].adapter.is_dir():
        runs = [Run.open(path) for path in runs[0].merged_runs()]
    members = [Trained(_settings(run.settings(), run.config, changes), run.adapter) for run in runs]
    unfinished = [str(member.adapter) for member in members if not Path(str(member.adapter)).is_dir()]
    if unfinished:
        raise UserError(f"{', '.join(unfinished)}: missing, so the run has not finished training.")
    calibration = None
    if adjustment.requested_method(config.eval) != "none":
        calibration = adjustment.load_calibration(runs, [], config.eval)
    return Source(members, config, calibration)


def _exported(folder: Path, changes: Sequence[str]) -> Source:
    try:
        facts = json.loads((folder / EXPORT).read_text(encoding="utf-8"))
        settings, kind = facts["settings"], facts["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / EXPORT}: can't be read ({error}); export the run again.") from None
    if kind != "adapter":
        settings["model"] |= {"path": str(folder), "package": None, "repo": None, "load_in_4bit": False}
    if kind == "classifier":
        settings["engine"] |= {"kind": "classifier", "path": str(folder)}
    elif kind in ("fp8", "gptq8"):  # which this project does not compute
        settings["engine"] |= {"kind": "vllm", "path": str(folder)}
    elif kind == "gguf":
        settings["engine"] |= {"kind": "llama_cpp", "path": str(folder / GGUF)}
    config = _settings(settings, folder / EXPORT, changes)
    member = Trained(config, folder if kind == "adapter" else None, head=folder)
    stored = facts.get("calibration")
    wanted = adjustment.requested_method(config.eval) != "none"
    if wanted and stored is None:
        raise UserError(
            f"{folder}: holds no calibration, which eval.calibrate and eval.stack need; the run that was "
            "exported has none.\n  Leave them out."
        )
    return Source([member], config, Calibration.from_json(stored) if wanted else None)


def _settings(stored: dict[str, Any], file: Path, changes: Sequence[str]) -> Config:
    from omegaconf import OmegaConf

    from lmsys_unsloth.config.defaults import with_defaults

    merged = OmegaConf.merge(OmegaConf.create(with_defaults(stored)), OmegaConf.from_dotlist(list(changes)))
    try:
        plain: Any = OmegaConf.to_container(merged, resolve=True)
        return parse_config(plain)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
