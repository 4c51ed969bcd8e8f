"""Numbers → sentences: what a run's metrics mean, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Tone = Literal["plain", "good", "bad"]

OVERCONFIDENT = 1.1
"""Temperatures from here on (and below 1 / this) are worth acting on."""

FEW_PROMPTS = 30
"""Below this, a bootstrap interval is itself too uncertain (and on average too narrow) to rest on."""

NOTABLE_GAIN = 0.0005
NOTABLE_BIAS = 0.03
NOTABLE_FLIPS = 0.1


@dataclass(frozen=True)
class Sentence:
    """One statement; ``bad`` ones are what a reader must not overlook."""

    text: str
    tone: Tone = "plain"


def half_width(interval: list[float] | None) -> float | None:
    """The ± of an interval.

    >>> round(half_width([0.91, 0.95]), 3)
    0.02
    """
    return None if interval is None else (interval[1] - interval[0]) / 2


def headline(metrics: Mapping[str, Any]) -> str:
    """One line with the score: ``log loss 0.930 ± 0.012, 0.168 better than the class prior``."""
    loss = metrics.get("log_loss")
    if loss is None:
        return "no labelled rows: predictions only"
    margin = half_width(metrics.get("log_loss_ci"))
    prior = metrics["baselines"]["class_prior"]
    verdict = "better" if loss <= prior else "worse"
    uncertainty = "" if margin is None else f" ± {margin:.3f}"
    return f"log loss {loss:.3f}{uncertainty}, {abs(prior - loss):.3f} {verdict} than the class prior"


def summary(
    metrics: Mapping[str, Any], slices: Mapping[str, list[dict[str, Any]]] | None = None
) -> list[Sentence]:
    """What a reader should know first, most important first."""
    if metrics.get("log_loss") is None:
        return [
            Sentence("No row has a known outcome, so nothing could be scored; the probabilities are below.")
        ]
    found = [
        _against_prior(metrics),
        _against_regression(metrics),
        _against_best(metrics),
        _accuracy(metrics),
        _folds(metrics),
        _runs_compared(metrics),
        _calibration(metrics),
        _position(metrics),
        _swapped_share(metrics),
        _weak_spots(metrics, slices or {}),
        _leaderboard(metrics),
    ]
    return [sentence for sentence in found if sentence is not None]


def advice(metrics: Mapping[str, Any], slices: Mapping[str, list[dict[str, Any]]] | None = None) -> list[str]:
    """What to try next, where the numbers suggest something."""
    loss = metrics.get("log_loss")
    if loss is None:
        return [
            "Score rows with known outcomes (data.path=FILE with winner columns) to learn how good this is."
        ]
    tips = []
    if loss > metrics["baselines"]["class_prior"]:
        tips.append(
            "A constant would score better. An untrained model has not learnt to answer with these tokens: "
            "train it. A trained one tells rows apart by noise: use more rows, a lower learning rate or a "
            "larger model, and look at a tokenised sample (debug=preview)."
        )
    elif _loses_to_regression(metrics):
        tips.append("Train on more rows, for longer, or with a larger model: form alone predicts better.")
    tips += _confidence_advice(metrics)
    swap = metrics.get("swap")
    if swap and (abs(swap["first_position_bias"]) > NOTABLE_BIAS or swap["flips"] > NOTABLE_FLIPS):
        tips.append(
            "The place of an answer matters too much: train with data.swap=both, and average both orders "
            "when predicting (eval.swap=average)."
        )
    cut = {part["name"]: part for part in (slices or {}).get("Share truncated", [])}
    if "half or more cut" in cut and "nothing cut" in cut:
        worse = cut["half or more cut"]["log_loss"] - cut["nothing cut"]["log_loss"]
        if worse > 0.02:
            tips.append(f"Rows cut by half or more lose {worse:.3f}: try a larger prompt.max_tokens.")
    margin = half_width(metrics.get("log_loss_ci"))
    if margin is None or margin > 0.02:
        width = "" if margin is None else f" (±{margin:.3f})"
        tips.append(
            f"The interval is wide{width}: compare runs on the same rows (eval.py runs=[A,B]), "
            "or score more rows, before believing a small difference."
        )
    return tips


def _confidence_advice(m: Mapping[str, Any]) -> list[str]:
    if m["log_loss"] > m["baselines"]["class_prior"]:
        return []  # flattening a model that knows nothing only makes it a constant
    if _confidence(m) > 0:
        return [
            f"Probabilities are too sure. Dividing the logits by {m['temperature']:.2f} repairs it; fewer "
            "epochs, a lower learning rate or label smoothing prevent it."
        ]
    if _confidence(m) < 0:
        return [f"Probabilities are too timid (best temperature {m['temperature']:.2f}): train longer."]
    return []


def _against_prior(m: Mapping[str, Any]) -> Sentence:
    prior = m["baselines"]["class_prior"]
    high = (m.get("log_loss_ci") or [m["log_loss"]] * 2)[1]
    rows = f"{m['n']:,} rows" + (
        f" of {m['n_groups']:,} prompts" if m.get("n_groups", m["n"]) != m["n"] else ""
    )
    few = m["n_groups"] < FEW_PROMPTS
    tone: Tone = "bad" if m["log_loss"] > prior else "good" if high < prior and not few else "plain"
    interval = m.get("log_loss_ci")
    between = f" (95% interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    verdict = {"good": "clearly better than", "bad": "worse than", "plain": "better than"}[tone]
    text = f"A log loss of {m['log_loss']:.3f}{between} on {rows}: {verdict} the class prior, {prior:.3f}."
    if few:
        text += f" With {m['n_groups']} prompts the interval is itself uncertain."
    elif tone == "plain":
        text += " The interval includes the prior, so this may be chance."
    return Sentence(text, tone)


def _loses_to_regression(m: Mapping[str, Any]) -> bool:
    rival = m["baselines"].get("logistic_regression")
    return rival is not None and m["log_loss"] >= rival


def _against_regression(m: Mapping[str, Any]) -> Sentence | None:
    rival = m["baselines"].get("logistic_regression")
    if rival is None:
        return None
    loses = _loses_to_regression(m)
    interval = (m.get("against_logistic_regression") or {}).get("difference_ci")
    if interval is not None and not loses:
        interval = [-interval[1], -interval[0]]  # as the gain that the sentence speaks of
    between = "" if interval is None else f" (95% interval {_number(interval[0])} to {_number(interval[1])})"
    gap = f"by {abs(m['log_loss'] - rival):.3f}{between}"
    regression = f"a logistic regression on length, lists, code and similarity, which scores {rival:.3f}"
    if loses:
        moral = "what was learnt about content is not worth more than the look of the answers"
        return Sentence(f"It loses {gap} to {regression}: {moral}.", "bad")
    sure = interval is not None and interval[0] > 0
    doubt = "" if sure else "; this may be chance"
    return Sentence(f"It beats, {gap}, {regression}{doubt}.", "good" if sure else "plain")


def _against_best(m: Mapping[str, Any]) -> Sentence | None:
    best = m.get("best_possible")
    if best is None:
        return None
    prior = m["baselines"]["class_prior"]
    way = (prior - m["log_loss"]) / (prior - best) if prior > best else math.nan
    progress = f": {way:.0%} of the way from the class prior" if way > 0 else ""
    return Sentence(f"The best possible log loss on these simulated rows is {best:.3f}{progress}.")


def _number(value: float) -> str:
    """Three digits, with a minus that is no hyphen: lines don't break after it."""
    return f"{value:.3f}".replace("-", "−")


def _accuracy(m: Mapping[str, Any]) -> Sentence:
    counts = m["class_counts"]
    most = max(counts.values()) / m["n"]
    return Sentence(
        f"It names the right outcome for {m['accuracy']:.1%} of the rows; always naming the most frequent "
        f"one would be right for {most:.1%}."
    )


def _folds(m: Mapping[str, Any]) -> Sentence | None:
    folds = m.get("folds")
    if not folds:
        return None
    losses = [fold["log_loss"] for fold in folds]
    return Sentence(
        f"Over {len(folds)} folds the log loss runs from {min(losses):.3f} to {max(losses):.3f} "
        f"(standard deviation {m['fold_std']:.3f})."
    )


def _runs_compared(m: Mapping[str, Any]) -> Sentence | None:
    """The average against its best member: what averaging was worth."""
    compared = m.get("runs_compared")
    if not compared:
        return None
    best = min(range(len(compared)), key=lambda k: compared[k]["log_loss"])
    loss, gain = compared[best]["log_loss"], compared[best]["log_loss"] - m["log_loss"]
    verdict = f"{gain:.3f} better than" if gain > 0 else f"{-gain:.3f} worse than"
    return Sentence(
        f"This is an average of {len(compared)} models, {verdict} the best of them alone "
        f"(model {best + 1}, {loss:.3f})."
    )


def _confidence(m: Mapping[str, Any]) -> int:
    """1 too sure, -1 too timid, 0 neither. A temperature counts when it helps rows it was not fitted on."""
    temperature, after = m.get("temperature"), m.get("log_loss_after_temperature")
    if temperature is None or after is None or m["log_loss"] - after <= NOTABLE_GAIN:
        return 0
    return 1 if temperature > OVERCONFIDENT else -1 if temperature < 1 / OVERCONFIDENT else 0


def _calibration(m: Mapping[str, Any]) -> Sentence | None:
    temperature, after = m.get("temperature"), m.get("log_loss_after_temperature")
    if temperature is None or after is None:
        return None
    state = {1: "too sure of themselves", -1: "too timid", 0: "about as sure as they should be"}[
        _confidence(m)
    ]
    gain = m["log_loss"] - after
    effect = f"lowers the log loss to {after:.3f}" if gain > NOTABLE_GAIN else "would not lower the log loss"
    return Sentence(
        f"Probabilities are {state} (smooth calibration error {m['smooth_ece']:.3f}); a temperature of "
        f"{temperature:.2f}, fitted on other rows, {effect}.",
        "bad" if gain > 0.02 else "plain",
    )


def _position(m: Mapping[str, Any]) -> Sentence | None:
    swap = m.get("swap")
    if not swap:
        return None
    bias = swap["first_position_bias"]
    direction = "first" if bias >= 0 else "second"
    strong = abs(bias) > NOTABLE_BIAS or swap["flips"] > NOTABLE_FLIPS
    return Sentence(
        f"Being shown {direction} gains a bot {abs(bias):.1%} probability; exchanging the bots changes the "
        f"most probable outcome of {swap['flips']:.1%} of {swap['n']:,} rows.",
        "bad" if strong else "good",
    )


def _swapped_share(m: Mapping[str, Any]) -> Sentence | None:
    speed = m.get("scoring") or {}
    if "swap_seconds_saved" not in speed or not m.get("swap"):
        return None
    saved = speed["swap_seconds_saved"]
    return Sentence(
        f"Only the {m['swap']['n']:,} least certain of {m['n']:,} rows were scored in both orders, which "
        f"saved about {saved:.0f} s of {speed['seconds'] + saved:.0f} s."
    )


def _weak_spots(m: Mapping[str, Any], slices: Mapping[str, list[dict[str, Any]]]) -> Sentence | None:
    """Parts whose whole interval lies above the overall loss; the outcome itself is no property to act on."""
    spots = [
        (
            part["log_loss"] - m["log_loss"],
            f"{title.lower()}: {part['name']} ({part['log_loss']:.3f}, n = {part['n']:,})",
        )
        for title, parts in slices.items()
        if title not in ("Outcome", "Fold")
        for part in parts
        if part["ci"] is not None and part["ci"][0] > m["log_loss"] and part["name"] != "all other pairs"
    ]
    if not spots:
        return None
    worst = [text for _, text in sorted(spots, reverse=True)[:3]]
    return Sentence(f"Weaker than average on {'; '.join(worst)}.")


def _leaderboard(m: Mapping[str, Any]) -> Sentence | None:
    estimate = m.get("leaderboard_estimate")
    if estimate is None or m.get("best_possible") is not None:
        return None
    return Sentence(
        f"If these were LMSYS rows, the public leaderboard might show {estimate:.3f} "
        "(0.890 × CV + 0.125, one team's fit)."
    )
