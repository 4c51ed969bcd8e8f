"""Command line to typed configuration, shared by ``train.py`` and ``eval.py``.

Hydra is used in this module only; everything else receives a :class:`~lmsys_unsloth.config.parsing.Config`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lmsys_unsloth.cli.agreement import agree
from lmsys_unsloth.cli.start.mistakes import find_mistakes
from lmsys_unsloth.cli.start.program import in_words_of_the_caller, is_eval, program
from lmsys_unsloth.config.defaults import with_new_keys
from lmsys_unsloth.config.parsing import Config, is_known_key, parse_config
from lmsys_unsloth.config.prompt_file import use_prompt_file
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.errors import UserError, WriteError
from lmsys_unsloth.core.ranks import RankLost

if TYPE_CHECKING:
    from lmsys_unsloth.report.tracking import Tracker

GROUPS = ("model", "prompt", "lora", "head", "data", "train", "engine", "logger", "experiment", "debug")
COMMAND_KEYS = ("resume", "run", "runs", "cv", "launcher", "search")
"""Keys that say what a command works on and where its jobs run; all other keys describe the run itself."""
_SWEEP_GROUPS = ("launcher", "search")
_FREE_GROUPS = ("engine", "logger", "debug")
"""Groups that may be replaced when a trained run is scored; they do not change what its model is."""


@dataclass(frozen=True)
class Member:
    """A trained run to score, and its configuration with the overrides of the command applied."""

    run: Run
    config: Config


def prepare_arguments(arguments: Sequence[str]) -> list[str]:
    """Prepare the arguments of the command line for Hydra.

    A key that the schema does not have is added by force (``++lora.q=1``): Hydra would stop at it, whereas
    :func:`~lmsys_unsloth.config.parsing.parse_config` reports it together with every other problem.
    ``resume=RUN`` makes RUN the output directory and leaves its ``.hydra`` record unchanged.

    >>> prepare_arguments(["lora.r=8", "lora.q=1", "resume=runs/x"])
    ['lora.r=8', '++lora.q=1', 'resume=runs/x', 'hydra.output_subdir=null']

    (``hydra.run.dir=runs/x`` is added when that directory is a run.)
    """
    prepared: list[str] = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        plain = separator and key[:1].isalpha() and "@" not in key and not key.startswith("hydra")
        known = key in GROUPS or key in COMMAND_KEYS or is_known_key(key)
        prepared.append(f"++{argument}" if plain and not known else argument)
        if key == "resume":
            prepared.append("hydra.output_subdir=null")
            if Run(Path(value)).config.is_file():  # Hydra would create a missing directory
                prepared.append(f"hydra.run.dir={value}")
    return prepared


def require_readable(words: Sequence[str]) -> None:
    """Raise an error that explains every mistake in the form of the arguments."""
    if found := find_mistakes(words, (*GROUPS, *_SWEEP_GROUPS)):
        raise UserError("\n".join(found))


@contextmanager
def messages() -> Iterator[None]:
    """Turn a :class:`UserError` into its text and exit status 2, Ctrl-C into status 130.

    What ends all ranks is printed by one of them.
    """
    try:
        yield
    except RankLost as error:
        _print_lost(error)
        sys.exit(2)
    except UserError as error:
        if ranks.current().report(str(error)):
            print(f"error: {_of_rank()}{in_words_of_the_caller(str(error))}", file=sys.stderr)
        if isinstance(error, WriteError) and ranks.current().first:
            _print_how_to_resume()
        if HydraConfig.initialized() and ranks.current().first:
            output().remove_if_unused()
        sys.exit(2)
    except KeyboardInterrupt:
        if lost := ranks.current().lost():
            _print_lost(lost)
        elif ranks.current().first:
            print("\ninterrupted", file=sys.stderr)
            _print_how_to_resume()
        sys.exit(130)
    except Exception as error:
        ranks.current().report(f"{type(error).__name__}: {error}")
        raise


def locked(run: Run) -> AbstractContextManager[None]:
    """Keep other commands out of a run directory; the ranks of one command share it."""
    return run.locked() if ranks.current().first else nullcontext()


def _print_lost(lost: RankLost) -> None:
    if lost.told:
        print(f"error: {_of_rank()}{lost}", file=sys.stderr)
    if ranks.current().first:
        _print_how_to_resume()


def _of_rank() -> str:
    return "" if ranks.current().first else f"rank {ranks.current().rank}: "


def _print_how_to_resume() -> None:
    if not (HydraConfig.initialized() and output().can_resume()):
        return
    command = program()  # train.py has its settings in the run; eval.py must be told them again
    if is_eval():
        command = " ".join(w for w in command_line().split() if not w.startswith("resume="))
    print(f"resume with: {command} resume={output().path}", file=sys.stderr)


def open_training_run(composed: DictConfig) -> tuple[Config, Run]:
    """Configuration and directory of a new run, or of the one that ``resume=RUN`` names; for all ranks.

    Raises:
        UserError: the configuration is invalid, or overrides would change the resumed run.
    """
    settings = _settings(composed)
    resume = composed["resume"]
    if resume is None:
        config = parse_composed(composed, _overrides())
        if config.debug.parity:
            raise UserError("debug.parity = True: compares forward passes without training; use eval.py.")
        if config.engine.kind != "native":
            raise UserError(f"engine={config.engine.kind}: is for scoring; leave it out, or use eval.py.")
        return config, agree([config], output())
    changes = [override for override in _overrides() if not override.startswith("resume=")]
    if changes:
        raise UserError(
            f"resume={resume} uses that run's configuration; {', '.join(changes)} would change it.\n"
            "  Leave the other overrides out, or start a new run."
        )
    run = Run.open(Path(resume))
    config = parse_config(with_new_keys(run.settings(), settings))
    return config, agree([config], run)


def open_evaluation(composed: DictConfig) -> tuple[Config, list[Member], Run]:
    """Configuration, the trained runs to score (none: an untrained model), and the output directory.

    ``resume=OUTPUT``, with the words of an interrupted command, goes on in its output directory: what was
    scored there and would be scored in the same way again is used.

    Each run keeps its own configuration. Overrides of single values are applied to all of them, and the
    groups ``engine``, ``logger`` and ``debug`` may be replaced as a whole.

    Raises:
        UserError: the configuration is invalid, a run does not exist, or an override exchanges a group
            that decides what the trained model computes.
    """
    if resume := composed["resume"]:
        Run.open(Path(resume))
    settings, named = _settings(composed), _runs(composed)
    if not named:
        _require_model()
        config = parse_composed(composed, _overrides())
        agree([config], output())
        return config, [], output()
    overrides = [o.lstrip("+") for o in _overrides() if o.partition("=")[0] not in COMMAND_KEYS]
    exchanged = {o.partition("=")[0] for o in overrides if o.partition("=")[0] in GROUPS}
    refused = [o for o in overrides if o.partition("=")[0] in exchanged - set(_FREE_GROUPS)]
    if refused:
        raise UserError(
            f"{', '.join(refused)}: a trained run is scored with its own settings, whole groups can't be "
            "exchanged.\n  Override single values (data.path=FILE), or leave run= out for an untrained model."
        )
    values = [o for o in overrides if o.partition("=")[0] not in GROUPS]
    free = {name: settings[name] for name in exchanged}
    members = [_member(Run.open(Path(path)), settings, free, values) for path in named]
    agree([member.config for member in members], output())
    return members[0].config, members, output()


def parse_composed(composed: DictConfig, overrides: Sequence[str]) -> Config:
    """The validated configuration of a run from what Hydra composed of these overrides.

    Raises:
        UserError: the configuration is invalid.
    """
    return parse_config(use_prompt_file(_settings(composed), overrides))


def _settings(composed: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values, without the keys of the command."""
    return {key: value for key, value in _plain(composed).items() if key not in COMMAND_KEYS}


def _runs(composed: DictConfig) -> list[str]:
    """Directories that the command names, those of a cross-validation among them."""
    merged = Run.open(Path(composed["cv"])).merged_runs() if composed["cv"] else []
    return [*composed["runs"], *([composed["run"]] if composed["run"] else []), *map(str, merged)]


def _require_model() -> None:
    """Raise an error if nothing says what to score."""
    if not any(
        override.lstrip("+").startswith(("model", "engine", "experiment")) for override in _overrides()
    ):
        raise UserError(
            f"{program()}: what is to be scored? A trained run (run=RUN), several (runs=[RUN0,RUN1]), or an "
            "untrained model (model=NAME, for example model=smollm2)."
        )


def _member(run: Run, settings: dict[str, Any], free: dict[str, Any], values: Sequence[str]) -> Member:
    stored = with_new_keys(run.settings(), settings) | free
    merged = OmegaConf.merge(OmegaConf.create(stored), OmegaConf.from_dotlist(list(values)))
    return Member(run, parse_config(use_prompt_file(_plain(merged), values)))


def output() -> Run:
    """Directory that Hydra created for this process, relative to the working directory where possible."""
    path = Path(HydraConfig.get().runtime.output_dir)
    return Run(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _overrides() -> list[str]:
    """Overrides on the command line, without those of Hydra's own settings."""
    return list(HydraConfig.get().overrides.task)


def _plain(composed: Any) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except Exception as error:  # OmegaConf's errors name the key and the rule
        raise UserError(f"the configuration can't be resolved: {error}") from None
    return cast(dict[str, Any], plain)


def tracked(
    config: Config, run: Run, job_type: Literal["train", "eval", "cv"]
) -> AbstractContextManager[Tracker]:
    """Open the tracker that ``logger`` names, with the command's overrides and its sweep.

    Ranks but the first one get one that does nothing.
    """
    from lmsys_unsloth.report import tracking

    if not ranks.current().first:
        return nullcontext(tracking.NoTracker())
    return tracking.start(config, run, job_type=job_type, sweep=_sweep_name(), overrides=_overrides())


def _sweep_name() -> str | None:
    """Name of the sweep this job belongs to, for grouping; None for a single run."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return "-".join(Path(HydraConfig.get().sweep.dir).parts[-2:])


def command_line() -> str:
    """Command that was run, for reports: ``python train.py fold=1``."""
    return " ".join([program(), *_overrides()])
