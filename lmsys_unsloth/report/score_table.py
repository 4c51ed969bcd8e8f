"""The table of log losses in the report and in the terminal: baselines, raw, calibrated and stacked."""

from __future__ import annotations

from dataclasses import dataclass

from lmsys_unsloth.data.form.features import FEATURES
from lmsys_unsloth.evaluate.baselines import INPUTS
from lmsys_unsloth.evaluate.bootstrap import PairedDifference
from lmsys_unsloth.evaluate.scores import Metrics

METHODS = {"raw": "raw", "temperature": "calibrated", "stack": "stacked"}
"""Names of the predictions by the keys of ``Metrics.adjusted``."""


@dataclass(frozen=True)
class ScoreLine:
    """One log loss of the table."""

    name: str
    log_loss: float
    note: str = ""
    own: bool = False
    """Whether this is the score of the run's predictions themselves."""
    from_regression: PairedDifference | None = None
    """Difference from logistic regression on the form of the responses, on the same rows."""
    from_raw: PairedDifference | None = None
    """Difference of calibrated and stacked predictions from raw ones."""


def score_lines(metrics: Metrics) -> list[ScoreLine]:
    """List the log losses, normally from worst to best; empty when no row has a known outcome."""
    score = metrics.score
    if score is None:
        return []
    baselines = score.baselines
    lines = [
        ScoreLine("uniform", baselines.uniform, "1/3 each"),
        ScoreLine("class prior", baselines.class_prior, f"of {score.class_prior_source}"),
    ]
    if baselines.logistic_regression is not None:
        regression = baselines.logistic_regression
        lines.append(ScoreLine("logistic regression", regression, f"{len(INPUTS)} features"))
    if baselines.form is not None:
        lines.append(ScoreLine("regression on form", baselines.form, f"{len(FEATURES)} features"))
    note = f"{score.n:,} rows, accuracy {score.accuracy:.1%}"
    used = "raw" if metrics.adjustment == "none" else metrics.adjustment
    if len(metrics.adjusted) > 1:
        lines += [
            ScoreLine(
                f"{METHODS[name]} (this run)" if name == used else METHODS[name], own.log_loss,
                note if name == used else "", name == used, own.against_logistic_regression, own.against_raw,
            )
            for name, own in metrics.adjusted.items()
        ]  # fmt: skip
    else:
        lines.append(ScoreLine("this run", score.log_loss, note, True, score.against_logistic_regression))
    if score.best_possible is not None:
        lines.append(ScoreLine("best possible", score.best_possible, "true probabilities"))
    return lines


def format_difference(pair: PairedDifference | None) -> str:
    """A paired difference with its 95% interval, for example ``−0.143 (−0.192 to −0.093)``.

    >>> format_difference(PairedDifference(-0.1431, (-0.192, 0.093), 1.0))
    '−0.143 (−0.192 to +0.093)'
    """
    if pair is None:
        return ""
    interval = pair.difference_ci
    between = f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else ""
    return f"{pair.difference:+.3f}{between}".replace("-", "−")
