"""From the arguments of a sweep to its jobs; what is wrong is reported before the first one starts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmsys_unsloth.cli.arguments import parse_composed, prepare_arguments
from lmsys_unsloth.config.resources import composing
from lmsys_unsloth.config.sweep_schema import LauncherConfig, Parameter, SearchConfig, parse_section
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.sweep.jobs import RECORD, Job, make_job, quote, read_arguments

MULTIRUN = ("-m", "--multirun")


@dataclass(frozen=True)
class Plan:
    """A sweep, or a search, that can begin."""

    folder: Path
    jobs: list[Job]
    """Jobs of a sweep; empty for a search, whose jobs follow from the results of earlier ones."""
    launcher: LauncherConfig
    search: SearchConfig | None
    overrides: list[str]
    """Overrides of every trial of a search."""
    arguments: list[str]
    """Arguments with which the sweep is continued."""


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether the arguments of ``train.py`` ask for several jobs, in a single process that starts them."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return False  # refused by lmsys_unsloth.cli.launch
    if {"--cfg", "-c", "--help", "-h", "--info", "-i", "--hydra-help"} & set(arguments):
        return False  # Hydra prints something and ends
    resumed = [value for argument in arguments if (value := argument.removeprefix("resume=")) != argument]
    wanted = any(
        argument in MULTIRUN or argument.startswith(("cv=", "search=", "search.")) for argument in arguments
    )
    return wanted or any(Path(value, RECORD).is_file() for value in resumed)


def make_plan(arguments: Sequence[str]) -> Plan:
    """Compose and check every job of a sweep, or the space of a search.

    Raises:
        UserError: an unknown key, a wrong value, a value given twice, or two equal configurations.
    """
    words = [*_expand(arguments), "hydra.mode=RUN"]
    try:
        overrides = OverridesParser.create().parse_overrides(prepare_arguments(words))
        _refuse_repeated(overrides)
        given = [o.input_line for o in overrides if _is_of_command(o.key_or_group)]
        of_jobs = [o for o in overrides if not _is_of_command(o.key_or_group)]
        with composing() as compose:
            master = compose(given, return_hydra_config=True)
        launcher = parse_section(LauncherConfig, "launcher", _plain(master.launcher))
        search = _search(master, of_jobs)
        if search is not None:
            of_jobs = [o for o in of_jobs if not o.is_sweep_override()]
        products = BasicSweeper.split_arguments(of_jobs, None)[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(str(error)) from None
    folder, fixed = Path(master.hydra.sweep.dir), products[0]
    kept = [word for word in _expand(arguments) if not word.startswith("hydra.sweep.dir=")]
    if search is not None:
        keys = {word.partition("=")[0] for word in fixed}
        fixed = [word for word in search.overrides if word.partition("=")[0] not in keys] + fixed
        compose_jobs([[*fixed, *prepare_arguments(values)] for values in example_values(search)], folder)
        return Plan(folder, [], launcher, search, fixed, kept)
    jobs = compose_jobs(products, folder)
    _refuse_equal(jobs)
    return Plan(folder, jobs, launcher, None, fixed, kept)


def compose_jobs(products: Sequence[Sequence[str]], folder: Path) -> list[Job]:
    """Compose the configurations that lists of overrides give, and name the jobs that train them.

    Raises:
        UserError: every problem of every configuration.
    """
    jobs, problems = [], dict[str, None]()
    with composing() as compose:
        for product in products:
            try:
                config = parse_composed(compose(list(product)), product)
                if config.debug.preview:
                    raise UserError("debug.preview = True: trains nothing; leave it out of a sweep.")
                jobs.append(make_job(config, product, folder))
            except (UserError, HydraException, OmegaConfBaseException) as error:
                problems[str(error)] = None
    if problems:
        raise UserError("\n".join(problems))
    return jobs


def example_values(search: SearchConfig) -> list[list[str]]:
    """Overrides with the ends and choices of each parameter, the others at their first value."""
    values = {
        key: parameter.choices or [parameter.low, parameter.high] for key, parameter in search.space.items()
    }
    first = {key: of_key[0] for key, of_key in values.items()}
    examples = [{**first, key: value} for key, of_key in values.items() for value in of_key]
    return [[override(*item) for item in example.items()] for example in examples]


def override(key: str, value: Any) -> str:
    """An override of one key, as Hydra reads it: ``lora.r=8``."""
    if isinstance(value, str):
        return f"{key}={value}" if re.fullmatch(r"[\w./-]+", value) else f"{key}={quote(value)}"
    return f"{key}={json.dumps(value)}"


def _search(master: DictConfig, of_jobs: Sequence[Override]) -> SearchConfig | None:
    """The search that ``search=NAME`` asks for; overrides of the command take the place of its own values."""
    values = _plain(master.get("search"))
    if values is None:
        return None
    if "name" not in values:
        raise UserError("search: names no preset; add search=default.")
    search = parse_section(SearchConfig, "search", values)
    given = {o.key_or_group: _parameter(o) for o in of_jobs}
    if given.get("fold") is not None:
        raise UserError(f"search={search.name}: each trial trains one fold; give one fold=N.")
    kept = {key: parameter for key, parameter in search.space.items() if key not in given}
    space = kept | {key: parameter for key, parameter in given.items() if parameter is not None}
    if not space:
        raise UserError(f"search={search.name}: no key is varied; give one several values: lora.r=8,16.")
    return search.model_copy(update={"space": space})


def _parameter(override: Override) -> Parameter | None:
    """The values of a search that an override gives: ``lora.r=8,16`` or ``train.epochs=interval(1,3)``."""
    if override.is_interval_sweep():
        interval: Any = override.value()
        values = {"low": interval.start, "high": interval.end, "log": "log" in interval.tags}
    elif override.is_sweep_override():
        values = {"choices": [yaml.safe_load(str(value)) for value in override.sweep_string_iterator()]}
    else:
        return None
    return parse_section(Parameter, override.key_or_group, values)


def _plain(section: Any) -> Any:
    return OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section


def _expand(arguments: Sequence[str]) -> list[str]:
    """Overrides in place of ``-m``, ``cv=K`` and ``resume=SWEEP``."""
    words: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "resume":
            free = ("launcher.", "search.trials=")
            others = [o for o in arguments if o != argument and not o.startswith(free)]
            if others:
                raise UserError(f"{argument}: {', '.join(others)} would change that sweep; leave it out.")
            words += [*read_arguments(Path(value)), f"hydra.sweep.dir={value}"]
        elif key == "cv":
            if not re.fullmatch(r"[1-9]\d*", value) or int(value) < 2:
                raise UserError(f"cv = {value!r}: must be a number of folds, at least 2")
            both = [o for o in arguments if o.startswith(("fold=", "data.folds="))]
            if both:
                raise UserError(f"{argument}: trains every fold of {value}; leave out {', '.join(both)}")
            words += [f"data.folds={value}", f"fold={','.join(map(str, range(int(value))))}"]
        elif argument.startswith("-") and argument not in MULTIRUN:
            raise UserError(f"{argument}: a sweep takes overrides only (KEY=VALUE)")
        elif argument not in MULTIRUN:
            words.append(argument)
    return words


def _is_of_command(key: str) -> bool:
    return key.partition(".")[0] in ("hydra", "launcher", "search")


def _refuse_repeated(overrides: Sequence[Override]) -> None:
    """Raise an error when a key has the same value twice."""
    problems = []
    for override in overrides:
        if override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
            double = sorted({value for value in values if values.count(value) > 1})
            if double:
                problems.append(f"{override.input_line}: {', '.join(double)} is given twice; name it once")
    if problems:
        raise UserError("\n".join(problems))


def _refuse_equal(jobs: Sequence[Job]) -> None:
    """Raise an error when two jobs would be the same training."""
    seen: dict[str, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.id, job)
        if other is not job:
            differing = sorted(set(other.overrides) ^ set(job.overrides))
            raise UserError(f"{', '.join(differing)}: give the same configuration; name it once")
