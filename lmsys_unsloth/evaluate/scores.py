"""Metrics of a set of predictions as typed values, and their layout in ``metrics.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lmsys_unsloth.data.selection import Overlap
from lmsys_unsloth.evaluate.bootstrap import Interval, PairedDifference

VERSION = 1
"""Version of the layout of ``metrics.json``."""

_UNSCORED: dict[str, Any] = {
    "log_loss": None, "log_loss_ci": None, "accuracy": None, "n": 0, "baselines": {}, "temperature": None,
    "log_loss_after_temperature": None,
}  # fmt: skip
"""Names that ``metrics.json`` always has, with their values for predictions without a score."""

LEADERBOARD_NOTE = "0.890 x CV + 0.125: one team's fit between its own CV and the public leaderboard"


@dataclass(frozen=True, slots=True)
class Baselines:
    """Log losses of simple predictors on the same rows."""

    uniform: float
    """1/3 for every outcome."""
    class_prior: float
    """The same class shares for every row."""
    logistic_regression: float | None
    """On twelve features of the responses' form, see :mod:`lmsys_unsloth.evaluate.baselines`."""
    form: float | None = None
    """Of the regression that ``head.offset`` and ``eval.stack`` use, without the model."""


@dataclass(frozen=True, slots=True)
class TemperatureScaling:
    """Effect of dividing the model's own logits by a fitted temperature."""

    temperature: float
    """Fitted on all evaluated rows, for later predictions."""
    log_loss_after_temperature: float
    """Out of fold: the temperature of each row is fitted on other rows."""


@dataclass(frozen=True, slots=True)
class AdjustedScore:
    """Log loss of raw, calibrated or stacked predictions, fitted on other rows than they are scored on."""

    log_loss: float
    against_raw: PairedDifference | None
    """None for the raw predictions themselves."""
    against_logistic_regression: PairedDifference | None
    """None where no regression was fitted."""


@dataclass(frozen=True, slots=True)
class FoldScore:
    """Log loss of one fold of a cross-validation."""

    fold: int
    n: int
    log_loss: float


@dataclass(frozen=True, slots=True)
class Score:
    """Metrics of the rows whose outcome is known; there is at least one."""

    log_loss: float
    log_loss_ci: Interval | None
    """None when all rows share one prompt."""
    accuracy: float
    n: int
    n_groups: int
    """Number of distinct prompts."""
    brier: float
    smooth_ece: float
    smooth_ece_by_class: dict[str, float]
    class_counts: dict[str, int]
    predicted_counts: dict[str, int]
    mean_probabilities: dict[str, float]
    baselines: Baselines
    class_prior_source: str
    against_logistic_regression: PairedDifference | None
    against_form: PairedDifference | None
    """Difference from the regression that ``head.offset`` and ``eval.stack`` use: what the model adds."""
    scaling: TemperatureScaling | None
    """None when there are no other rows to fit on: all rows share one prompt."""
    best_possible: float | None
    """Simulated rows only: log loss expected from a predictor that knows the true probabilities."""
    expected_log_loss: float | None
    """Simulated rows only: log loss expected from the evaluated predictions."""
    folds: tuple[FoldScore, ...]
    """Empty when all rows belong to one fold."""
    fold_std: float | None
    """Standard deviation of the log loss over the folds."""
    leaderboard_estimate: float
    leaderboard_note: str = LEADERBOARD_NOTE

    @property
    def margin(self) -> float | None:
        """Half the width of the confidence interval."""
        return None if self.log_loss_ci is None else (self.log_loss_ci[1] - self.log_loss_ci[0]) / 2


@dataclass(frozen=True, slots=True)
class SwapConsistency:
    """How much predictions change when the two responses are swapped."""

    n: int
    mean_shift: float
    """Mean total variation distance between the predictions for the two orders."""
    flips: float
    """Share of rows whose most probable outcome changes."""
    first_position_bias: float
    """Mean probability that a response gains by being first; negative when the second position gains."""


@dataclass(frozen=True, slots=True)
class ScoringSpeed:
    """How fast rows were scored; a row scored in both orders counts twice."""

    seconds: float
    rows_per_second: float
    tokens_per_second: float
    peak_memory_gb: float
    """Peak memory of the GPU, or of the process where there is none, in 10⁹ bytes."""
    swap_seconds: float | None = None
    """Seconds spent on swapped rows, for ``eval.swap=uncertain``."""
    swap_seconds_saved: float | None = None
    """Estimated seconds saved by not swapping every row, for ``eval.swap=uncertain``."""
    swapped_rows: int | None = None
    """Number of rows that were scored in both orders, for ``eval.swap=uncertain``."""


@dataclass(frozen=True, slots=True)
class ModelScore:
    """Log loss of one of several averaged models, and its paired difference from the first of them."""

    runs: tuple[str, ...]
    log_loss: float
    difference: float | None
    """Negative when better than the first model; None for the first."""
    difference_ci: Interval | None


@dataclass(frozen=True, slots=True)
class WeightAverage:
    """How far a model with averaged adapters is from the average of the models' predictions."""

    runs: int
    rows: int
    """Number of compared rows."""
    mean_distance: float
    """Mean total variation distance of the two predictions of a row."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Everything that is known about a set of predictions; a part that does not apply is None or empty."""

    score: Score | None = None
    """None when no row has a known outcome."""
    n_unlabelled: int = 0
    swap: SwapConsistency | None = None
    scoring: ScoringSpeed | None = None
    trained_rows: Overlap | None = None
    runs_compared: tuple[ModelScore, ...] = ()
    adjustment: Literal["none", "temperature", "stack"] = "none"
    """How the scored predictions were adjusted."""
    adjusted: Mapping[str, AdjustedScore] = field(default_factory=dict)
    """Scores by ``raw``, ``temperature`` and ``stack``, as far as these could be fitted."""
    weight_average: WeightAverage | None = None

    def to_json(self) -> dict[str, Any]:
        """Content of ``metrics.json``: the fields of the score at the top level, without empty parts."""
        values = dataclasses.asdict(self)
        values |= values.pop("score") or {}
        values |= values.pop("scaling", None) or {}
        present = {name: value for name, value in values.items() if value not in (None, (), {})}
        return {"version": VERSION, **_UNSCORED, **present}
