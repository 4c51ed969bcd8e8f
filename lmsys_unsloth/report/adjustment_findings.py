"""State how calibration, stacking and averaging of adapters change the predictions, and recommend them."""

from __future__ import annotations

from collections.abc import Iterator

from lmsys_unsloth.data.selection import FEW_PROMPTS
from lmsys_unsloth.evaluate.scores import Metrics, Score
from lmsys_unsloth.report.finding import LARGE_DIFFERENCE, Finding, between

NOTABLE_TEMPERATURE = 1.1
"""Temperatures from here on, and below 1 / this, are called over- and underconfident."""

NOTABLE_GAIN = 0.0005
"""Smallest decrease in log loss for which temperature or stack are said to have an effect."""


def describe_adjustments(metrics: Metrics, score: Score) -> Iterator[Finding]:
    """Findings about raw, calibrated and stacked predictions."""
    yield from _describe_calibration(metrics, score)
    yield from _describe_stack(metrics, score)


def _describe_calibration(metrics: Metrics, score: Score) -> Iterator[Finding]:
    """Over- or underconfidence of the model's own probabilities, and what a temperature changes."""
    scaling = score.scaling
    if scaling is None:
        return
    after, temperature = scaling.log_loss_after_temperature, scaling.temperature
    raw = metrics.adjusted["raw"].log_loss if "raw" in metrics.adjusted else score.log_loss
    gain = raw - after  # on rows that the temperature was not fitted on
    effect = f"lowers the log loss to {after:.3f}" if gain > NOTABLE_GAIN else "does not lower the log loss"
    state, tip = "neither over- nor underconfident", None
    if gain > NOTABLE_GAIN and temperature > NOTABLE_TEMPERATURE:
        state = "overconfident"
        tip = "train for fewer epochs, with a lower learning rate or with label smoothing"
    elif gain > NOTABLE_GAIN and temperature < 1 / NOTABLE_TEMPERATURE:
        state, tip = "underconfident", "train for longer"
    if tip is not None:
        tip = f"Set eval.calibrate=temperature, or {tip}: the probabilities are {state}."
    own = metrics.adjustment == "none"
    yield Finding(
        f"The {'' if own else 'raw '}probabilities are {state} (smooth calibration error"
        f"{'' if own else ' after adjustment'} {score.smooth_ece:.3f}); a temperature of {temperature:.2f} "
        f"{effect}, measured out of fold.",
        "bad" if own and gain > LARGE_DIFFERENCE else "plain",
        tip if own and score.log_loss <= score.baselines.class_prior else None,
    )


def _describe_stack(metrics: Metrics, score: Score) -> Iterator[Finding]:
    """What stacking with the form of the responses changes."""
    stack = metrics.adjusted.get("stack")
    if stack is None or stack.against_raw is None:
        return
    pair = stack.against_raw
    gain = None if pair.difference_ci is None else (-pair.difference_ci[1], -pair.difference_ci[0])
    certain = (
        gain is not None and gain[0] > 0 and -pair.difference > NOTABLE_GAIN and score.n_groups >= FEW_PROMPTS
    )
    calibrated = metrics.adjusted.get("temperature")
    best = calibrated is None or stack.log_loss < calibrated.log_loss - NOTABLE_GAIN
    verb, interval = ("lower", gain) if pair.difference < 0 else ("higher", pair.difference_ci)
    chance = interval is None or interval[0] <= 0 or score.n_groups < FEW_PROMPTS
    yield Finding(
        f"Stacked with a regression on form, the log loss is {stack.log_loss:.3f}, "
        f"{abs(pair.difference):.3f} {verb} than raw{between(interval)}"
        f"{', which may be due to chance' if chance else ''}.",
        "good" if certain and metrics.adjustment == "stack" else "plain",
        f"Set eval.stack=true: it lowers the log loss by {-pair.difference:.3f}{between(gain)}."
        if certain and best and metrics.adjustment != "stack"
        else None,
    )


def describe_averaged_adapters(metrics: Metrics) -> Iterator[Finding]:
    """How far the predictions with averaged adapters are from averaged predictions."""
    average = metrics.weight_average
    if average is None:
        return
    far = average.mean_distance > LARGE_DIFFERENCE
    tip = "Average the predictions (eval.average=probabilities): the averaged adapters predict otherwise."
    yield Finding(
        f"One model with the averaged adapters of {average.runs} runs made the predictions. On the first "
        f"{average.rows} rows they differ from the average of the runs' predictions by a mean total "
        f"variation distance of {average.mean_distance:.3f}.",
        "bad" if far else "plain",
        tip if far else None,
    )
