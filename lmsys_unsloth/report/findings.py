"""State what the metrics of a run mean and what to do next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from lmsys_unsloth.data.selection import FEW_PROMPTS
from lmsys_unsloth.evaluate.bootstrap import PairedDifference
from lmsys_unsloth.evaluate.scores import Metrics, Score
from lmsys_unsloth.report import adjustment_findings
from lmsys_unsloth.report.finding import LARGE_DIFFERENCE, Finding, Tone, between
from lmsys_unsloth.report.slices import OTHER_PAIRS, TRUNCATED, Slice

Slices = Mapping[str, Sequence[Slice]]
"""Slices of the rows by the title of their table."""

NOTABLE_BIAS, NOTABLE_FLIPS = 0.03, 0.1
"""Gain in probability by position, and share of changed outcomes, above which the order matters too much."""


def headline(metrics: Metrics) -> str:
    """State the score in one line: ``log loss 0.930 ± 0.012, 0.168 better than the class prior``."""
    score, overlap = metrics.score, training_overlap(metrics)
    adjusted = {"none": "", "temperature": " (calibrated)", "stack": " (stacked)"}[metrics.adjustment]
    if score is None:
        return f"no labelled rows: predictions only{adjusted}"
    margin = ("" if score.margin is None else f" ± {score.margin:.3f}") + adjusted
    gain = score.baselines.class_prior - score.log_loss
    verdict = f"{abs(gain):.3f} {'better' if gain >= 0 else 'worse'} than the class prior"
    return f"log loss {score.log_loss:.3f}{margin}, {verdict}" + ("" if overlap is None else f"; {overlap}")


def training_overlap(metrics: Metrics) -> str | None:
    """State how many scored rows the model was trained on, as a clause; None if there are none."""
    if metrics.score is None or metrics.trained_rows is None or metrics.trained_rows.scored == 0:
        return None
    scored, rows = metrics.trained_rows.scored, f"{metrics.score.n:,} scored rows"
    if scored is None:
        return f"an unknown number of the {rows} may have been used to train this model"
    return f"{scored:,} of the {rows} {'was' if scored == 1 else 'were'} used to train this model"


def list_findings(
    metrics: Metrics, slices: Slices | None = None, data_warnings: Sequence[str] = ()
) -> list[Finding]:
    """List statements about the metrics and the data, the most important first."""
    score, overlap = metrics.score, training_overlap(metrics)
    warnings = [Finding(text, "bad") for text in data_warnings]
    if score is None:
        return [
            *warnings,
            *adjustment_findings.describe_averaged_adapters(metrics),
            Finding(
                "No row has a known outcome, so nothing could be scored; the predictions are below.",
                suggestion="To measure the quality of the predictions, score rows with known outcomes "
                "(data.path=FILE with winner columns).",
            ),
        ]
    found = [
        _compare_with_prior(score),
        *_compare_with_others(score),
        *_describe_rows(metrics, score),
        *adjustment_findings.describe_adjustments(metrics, score),
        *adjustment_findings.describe_averaged_adapters(metrics),
        *_describe_swap(metrics, score),
        *_describe_slices(score, slices or {}),
    ]
    if overlap is None:
        return [*warnings, *found]
    first = Finding(
        f"{overlap[0].upper()}{overlap[1:]}, so the log loss says nothing about new rows.",
        "bad",
        "To measure how well the model predicts new rows, score rows that it was not trained on: leave out "
        "eval.trained_rows=include and debug.evaluate_on_train.",
    )
    return [first, *warnings, *(Finding(f.text, "plain" if f.tone == "good" else f.tone) for f in found)]


def _compare_with_prior(score: Score) -> Finding:
    prior, interval, few = score.baselines.class_prior, score.log_loss_ci, score.n_groups < FEW_PROMPTS
    certain = (interval[1] if interval else score.log_loss) < prior and not few
    tone: Tone = "bad" if score.log_loss > prior else "good" if certain else "plain"
    verdict = {"good": "clearly better than", "bad": "worse than", "plain": "better than"}[tone]
    prompts = f" with {score.n_groups:,} prompts" if score.n_groups != score.n else ""
    text = (
        f"The log loss is {score.log_loss:.3f}{between(interval)} on {score.n:,} rows{prompts}, {verdict} "
        f"the class prior ({prior:.3f})."
    )
    if few:
        text += f" With only {score.n_groups} prompts, the interval itself is unreliable."
    elif tone == "plain":
        text += " The interval includes the class prior, so the difference may be due to chance."
    suggestion = (
        "A constant prediction would score better. If the model is untrained, train it: it has not learnt "
        "to answer with these tokens. If it is trained, its differences between rows are noise: use more "
        "rows, a lower learning rate or a larger model, and check a tokenised sample (debug=preview)."
    )
    return Finding(text, tone, suggestion if tone == "bad" else None)


def _compare_with_others(score: Score) -> Iterator[Finding]:
    """Comparison with logistic regression and with the best possible log loss, where they are known."""
    regression, pair = score.baselines.logistic_regression, score.against_logistic_regression
    best, prior = score.best_possible, score.baselines.class_prior
    if regression is not None and pair is not None:
        model = f"a logistic regression on length, lists, code and similarity ({regression:.3f})"
        if pair.difference >= 0:
            gap = f"{pair.difference:.3f}{between(pair.difference_ci)}"
            tip = "Train on more rows, for longer, or with a larger model: form alone predicts better."
            yield Finding(
                f"It loses to {model} by {gap}: form alone predicts no worse.",
                "bad",
                tip if score.log_loss <= prior else None,
            )
        else:
            gain = (-pair.difference_ci[1], -pair.difference_ci[0]) if pair.difference_ci else None
            certain = gain is not None and gain[0] > 0
            chance = "" if certain else "; the difference may be due to chance"
            text = f"It beats {model} by {-pair.difference:.3f}{between(gain)}{chance}."
            yield Finding(text, "good" if certain else "plain")
    if score.baselines.form is not None and score.against_form is not None:
        yield _compare_with_form(score.baselines.form, score.against_form, suggest=score.log_loss <= prior)
    if best is not None:
        text = f"The best possible log loss on these simulated rows is {best:.3f}"
        if max(best, score.log_loss) < prior:
            closed = (prior - score.log_loss) / (prior - best)
            text += f"; the model covers {closed:.0%} of the distance from the class prior to it"
        yield Finding(f"{text}.")


def _compare_with_form(form: float, pair: PairedDifference, *, suggest: bool) -> Finding:
    """What the model adds to the regression that may be part of its own predictions."""
    alone = f"The regression on form that head.offset and eval.stack use scores {form:.3f} without the model"
    if pair.difference_ci is not None and pair.difference_ci[1] < 0:
        gain = (-pair.difference_ci[1], -pair.difference_ci[0])
        return Finding(f"{alone}: the model knows more, by {-pair.difference:.3f}{between(gain)}.", "good")
    if pair.difference_ci is not None and pair.difference_ci[0] > 0:
        loss = f"{pair.difference:.3f}{between(pair.difference_ci)}"
        tip = "Train on more rows, or set eval.stack=true: form alone predicts better than the model."
        return Finding(f"{alone}: better than the model, by {loss}.", "bad", tip if suggest else None)
    difference = f"{pair.difference:+.3f}{between(pair.difference_ci)}".replace("-", "−")
    return Finding(
        f"{alone}; the difference of {difference} does not show that the model knows more than the form says."
    )


def _describe_rows(metrics: Metrics, score: Score) -> Iterator[Finding]:
    """Accuracy, rows left out, folds, averaged models and the width of the interval."""
    most_frequent = max(score.class_counts.values()) / score.n
    yield Finding(
        f"The most probable outcome is correct for {score.accuracy:.1%} of the rows; always predicting the "
        f"most frequent outcome would be correct for {most_frequent:.1%}."
    )
    if metrics.trained_rows is not None and metrics.trained_rows.left_out:
        left_out = metrics.trained_rows.left_out
        rows = "labelled row was" if left_out == 1 else "labelled rows were"
        yield Finding(f"{left_out:,} {rows} not scored because this model was trained on them.")
    if score.folds:
        losses = [fold.log_loss for fold in score.folds]
        yield Finding(
            f"Across {len(losses)} folds the log loss ranges from {min(losses):.3f} to {max(losses):.3f} "
            f"(standard deviation {score.fold_std:.3f})."
        )
    if metrics.runs_compared:
        losses = [model.log_loss for model in metrics.runs_compared]
        best = min(losses)
        comparison = f"{abs(best - score.log_loss):.3f} {'better' if score.log_loss < best else 'worse'} than"
        yield Finding(
            f"The predictions are an average of {len(losses)} models, {comparison} the best model alone "
            f"(model {losses.index(best) + 1}, {best:.3f})."
        )
    if score.margin is None or score.margin > LARGE_DIFFERENCE:
        yield Finding(
            "The log loss has no interval." if score.margin is None
            else f"The interval of the log loss is wide (±{score.margin:.3f}).",
            suggestion="Before relying on a small difference, compare runs on the same rows "
            "(eval.py runs=[A,B]) or score more rows.",
        )  # fmt: skip


def _describe_swap(metrics: Metrics, score: Score) -> Iterator[Finding]:
    """Consistency when the responses are swapped."""
    swap, speed = metrics.swap, metrics.scoring
    if swap is not None:
        biased = abs(swap.first_position_bias) > NOTABLE_BIAS or swap.flips > NOTABLE_FLIPS
        yield Finding(
            f"Being shown {'first' if swap.first_position_bias >= 0 else 'second'} raises a response's "
            f"probability by {100 * abs(swap.first_position_bias):.1f} percentage points; swapping the "
            f"responses changes the most probable outcome of {swap.flips:.1%} of {swap.n:,} rows.",
            "bad" if biased else "good",
            "Train with data.swap=both, and average both orders when predicting (eval.swap=average): the "
            "order of the responses matters too much." if biased else None,
        )  # fmt: skip
    if swap is not None and speed is not None and speed.swap_seconds_saved is not None:
        saved = speed.swap_seconds_saved
        yield Finding(
            f"Only the {swap.n:,} least certain of {score.n:,} rows were scored in both orders, which saved "
            f"about {saved:.0f} s of {speed.seconds + saved:.0f} s."
        )


def _describe_slices(score: Score, slices: Slices) -> Iterator[Finding]:
    """The worst slices whose whole interval lies above the log loss of all rows, and the effect of cutting.

    Slices by outcome or fold are left out: they are no properties of a row that one could act on.
    """
    weak = [
        (part.log_loss, f"{title.lower()}: {part.name} ({part.log_loss:.3f}, {part.n:,} rows)")
        for title, parts in slices.items()
        if title not in ("Outcome", "Fold")
        for part in parts
        if part.log_loss_ci and part.log_loss_ci[0] > score.log_loss and part.name != OTHER_PAIRS
    ]
    if weak:
        worst = [text for _, text in sorted(weak, reverse=True)[:3]]
        yield Finding(f"The log loss is above average on {'; '.join(worst)}.")
    losses = {part.name: part.log_loss for part in slices.get("Share truncated", ())}
    gap = losses.get(TRUNCATED[-1], 0.0) - losses.get(TRUNCATED[0], math.inf)
    if gap > LARGE_DIFFERENCE:
        yield Finding(
            f"Rows of which half or more was cut have a log loss {gap:.3f} higher than uncut rows.",
            suggestion="Try a larger prompt.max_tokens: rows of which half or more was cut score worse.",
        )
    if score.best_possible is None:
        yield Finding(
            f"On LMSYS rows, the public leaderboard might show about {score.leaderboard_estimate:.3f} "
            "(0.890 × CV + 0.125, one team's fit)."
        )
