"""The sections of sweeps and searches: where jobs run, and what a search varies.

They belong to the command, not to the run: ``RUN/config.yaml`` does not contain them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from lmsys_unsloth.config.schema import Section
from lmsys_unsloth.core.errors import UserError

S = TypeVar("S", bound=Section)

Objective = Literal["early_stopping", "validation"]
"""Rows on which a loss is computed: the early-stopping set, or the validation fold."""


def _number_or_auto(value: object) -> object:
    if value != "auto" and not (type(value) is int and value > 0):
        raise ValueError("must be an integer above 0, or auto")
    return value


class LauncherConfig(Section):
    """Where and how the jobs of a sweep run; each is a process of its own."""

    kind: Literal["local", "joblib", "submitit_local", "submitit_slurm", "ray"]
    """``local``: on this machine. ``joblib``: the same, in worker processes of joblib. ``submitit_local``:
    as on a SLURM cluster, but on this machine. ``submitit_slurm``: in the queue of a SLURM cluster. ``ray``:
    on a Ray cluster."""
    jobs: Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)]
    """Maximum number of jobs at a time. ``auto``: one for each visible GPU, one without a GPU; with SLURM and
    Ray, as many as these admit."""
    gpus: NonNegativeInt
    """GPUs that SLURM or Ray reserves for each job."""
    cpus: PositiveInt
    """CPU cores that SLURM or Ray reserves for each job."""
    memory_gb: PositiveFloat | None
    """Main memory that SLURM reserves for each job, in 10⁹ bytes; null: the default of the cluster."""
    minutes: PositiveInt
    """Time limit of submitit's jobs. A job that reaches it saves a checkpoint and is queued again."""
    signal_seconds: PositiveInt
    """Seconds before the time limit at which a job is told to save a checkpoint; longer than a step takes."""
    requeues: NonNegativeInt
    """How often a job that reached its time limit is queued again. Preemptions do not count."""
    slurm: dict[str, Any]
    """Further parameters of submitit's SLURM executor: ``partition``, ``account``, ``constraint``, …"""
    setup: list[str]
    """Shell commands at the start of a batch script: ``module load cuda``."""
    address: str | None
    """Address of a Ray cluster (``auto``: the one that this machine belongs to); null: a new local one."""


class Parameter(Section):
    """The values of one key: ``choices``, or numbers from ``low`` to ``high``."""

    choices: list[Any] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    """Draw the logarithm evenly, so that each factor is as likely as any other."""
    step: int | float | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Parameter:
        numbers = (self.low, self.high)
        if (self.choices is None) == (numbers == (None, None)):
            raise ValueError("needs either choices, or low and high")
        if self.choices is not None:
            if len({str(choice) for choice in self.choices}) < max(2, len(self.choices)):
                raise ValueError("choices must be two or more different values")
            if self.log or self.step is not None:
                raise ValueError("log and step belong to low and high, not to choices")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("needs low and high, the first below the second")
        elif self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0, and no step")
        return self


class SearchConfig(Section):
    """A search for the best values with Optuna (Akiba et al. 2019, arXiv:1907.10902)."""

    name: str
    """Name of the preset in ``conf/search``."""
    trials: PositiveInt
    """Number of trials, those of an earlier start of the same search included."""
    seed: NonNegativeInt
    """Random seed of the sampler."""
    sampler: Literal["tpe", "random"]
    """``tpe``: tree-structured Parzen estimator (Bergstra et al. 2011), which draws where earlier trials were
    good. ``random``: evenly."""
    startup_trials: PositiveInt
    """Number of finished trials before the sampler uses their results, and before any trial is pruned."""
    objective: Objective
    """Loss to minimise. ``early_stopping``: the lowest loss on the early-stopping set, which is taken from
    the training rows, so that the best trial's log loss on the validation fold was not chosen by. It needs
    ``train.evaluate_every``. ``validation``: the log loss on the validation fold."""
    prune: bool
    """Stop a trial whose loss on the early-stopping set is worse than the median of earlier trials at the
    same step. This needs ``train.evaluate_every``."""
    overrides: list[str]
    """Overrides of every trial, before those of the command."""
    space: dict[str, Parameter] = Field(min_length=1)
    """Values of each key that is varied; a group (``prompt``) has ``choices``."""


def parse_section(kind: type[S], name: str, values: Mapping[str, Any]) -> S:
    """Validate one section of a composed configuration.

    Raises:
        UserError: one message that lists every unknown key and every value that breaks a rule.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problems = [_explain(name, detail) for detail in error.errors()]
        raise UserError("\n  ".join([f"{name}:", *problems])) from None


def _explain(name: str, detail: Any) -> str:
    dotted = ".".join([name, *map(str, detail["loc"])])
    if detail["type"] == "extra_forbidden":
        return f"{dotted}: no such key"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{dotted} = {detail['input']!r}: {message[0].lower()}{message[1:]}"
