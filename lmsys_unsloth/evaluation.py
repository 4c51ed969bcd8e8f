"""The one evaluator: rows → predictions → metrics, for trained, stored and untrained models alike."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmsys_unsloth import memory, models, preflight, preview
from lmsys_unsloth.agreement import agreeing_decoder
from lmsys_unsloth.batches import AnswerIds, Batch, by_length, collate, target
from lmsys_unsloth.comparisons import LABELS, Comparison
from lmsys_unsloth.config import Config, parse
from lmsys_unsloth.decoder import Decoder
from lmsys_unsloth.files import write_json
from lmsys_unsloth.forward import answer_probabilities
from lmsys_unsloth.progress import progress
from lmsys_unsloth.prompting.tokens import EncodedRow, RowEncoder, encode_cached
from lmsys_unsloth.rows import data
from lmsys_unsloth.runs import Run
from lmsys_unsloth.scoring import averaging, baselines, crossvalidation, metrics, predictions, report
from lmsys_unsloth.scoring.predictions import UNLABELLED, Predictions

log = logging.getLogger(__name__)

WHOLE = -1
"""Fold of rows that belong to none: a whole file was scored."""


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found, ready to be shown and tracked."""

    metrics: dict[str, Any]
    predictions: Predictions
    rows: Sequence[Comparison]
    """The scored rows, in the order of ``predictions``."""


@torch.no_grad()
def score(
    decoder: Decoder, rows: Sequence[EncodedRow], answer_ids: AnswerIds, tokens_per_batch: int
) -> NDArray[np.float32]:
    """Probabilities ``[rows, 3]`` in ``LABELS`` order, float32, each row summing to 1; input order."""
    model = decoder.model
    was_training = model.training
    model.eval()
    device, freed = next(model.parameters()).device, memory.Releaser()
    result = np.zeros((len(rows), len(LABELS)), dtype=np.float32)
    with progress("scoring", len(rows), "row") as bar:
        for chosen in by_length([len(row.input_ids) for row in rows], tokens_per_batch):
            ids = [rows[row].input_ids for row in chosen]
            batch = collate(ids, [target(None, None)] * len(chosen)).to(device)
            result[list(chosen)] = _probabilities(decoder, batch, answer_ids).cpu().numpy()
            bar.advance(len(chosen))
            freed.release()
    model.train(was_training)
    return result


def _probabilities(decoder: Decoder, batch: Batch, answer_ids: AnswerIds) -> Tensor:
    """Of a batch, in parts when the memory is too small for all of it."""
    try:
        return answer_probabilities(decoder, batch, answer_ids)
    except RuntimeError as error:
        if len(batch) == 1 or not memory.is_out_of_memory(error):
            raise
    parts = batch.split(batch.padded_tokens // 2)
    log.warning(
        "out of memory with %d tokens in a batch: scored in %d parts", batch.padded_tokens, len(parts)
    )
    return torch.cat([_probabilities(decoder, part, answer_ids) for part in parts])


def predict(
    model: nn.Module,
    encoder: RowEncoder,
    rows: Sequence[Comparison],
    encoded: Sequence[EncodedRow],
    config: Config,
    fold: int,
    groups: Sequence[Any] | NDArray[Any] | None,
) -> tuple[Predictions, dict[str, float]]:
    """Score rows, and again with the bots exchanged where ``eval.swap`` says so (then both are averaged).

    Returns:
        Predictions, and how fast they were made: ``seconds``, ``rows_per_second`` (scorings, so a
        swapped row counts twice), ``tokens_per_second``, ``peak_memory_gb``; for ``uncertain`` also
        ``swap_seconds`` and ``swap_seconds_saved``, against exchanging the bots of every row.
    """
    decoder = agreeing_decoder(model, encoded, fast=config.train.fast)
    tokens, swap = config.eval.tokens_per_batch, config.eval.swap
    started = time.perf_counter()
    probabilities = score(decoder, encoded, encoder.answer_ids, tokens)
    seconds = time.perf_counter() - started
    predicted = to_predictions(rows, encoded, probabilities, fold, groups)
    if swap == "none":
        return predicted, _speed(encoded, seconds)
    share = config.eval.swap_share if swap == "uncertain" else 1.0
    where = predictions.least_certain(probabilities, share)
    exchanged = encode_cached(encoder, [rows[i].swapped() for i in where], progress=True)
    started = time.perf_counter()
    swapped = score(decoder, exchanged, encoder.answer_ids, tokens)
    swap_seconds = time.perf_counter() - started
    speed = _speed([*encoded, *exchanged], seconds + swap_seconds)
    if swap == "uncertain":
        saved = max(0.0, seconds - swap_seconds)
        speed |= {"swap_seconds": swap_seconds, "swap_seconds_saved": saved}
        log.info(
            "%d of %d rows scored with exchanged bots too: %.1f s instead of about %.1f s for all",
            len(where), len(rows), swap_seconds, seconds,
        )  # fmt: skip
    return predictions.with_swap(predicted, swapped, where), speed


def _speed(scored: Sequence[EncodedRow], seconds: float) -> dict[str, float]:
    return {
        "seconds": seconds,
        "rows_per_second": len(scored) / seconds,
        "tokens_per_second": sum(len(row.input_ids) for row in scored) / seconds,
        "peak_memory_gb": memory.peak_gb(),
    }


def to_predictions(
    comparisons: Sequence[Comparison],
    encoded: Sequence[EncodedRow],
    probabilities: NDArray[np.float32],
    fold: int,
    groups: Sequence[Any] | NDArray[Any] | None,
) -> Predictions:
    """Probabilities with what the report slices them by."""
    extra: dict[str, Sequence[Any]] = {
        "n_turns": [len(row.prompts) for row in comparisons],
        "n_tokens": [len(row.input_ids) for row in encoded],
        "share_cut": [row.share_cut for row in encoded],
        "model_a": [row.model_a for row in comparisons],
        "model_b": [row.model_b for row in comparisons],
        "identical_answers": [row.responses_a == row.responses_b for row in comparisons],
    }
    if groups is not None:
        extra["group"] = [str(group) for group in groups]
    return Predictions(
        ids=[row.id for row in comparisons],
        folds=np.full(len(comparisons), fold, dtype=np.int64),
        probabilities=probabilities,
        labels=np.array([UNLABELLED if row.label is None else row.label for row in comparisons]),
        extra=extra,
    )


def learned_from(train: Sequence[Comparison], rows: Sequence[Comparison]) -> dict[str, NDArray[np.float64]]:
    """What the training rows tell about ``rows`` without a language model, for :func:`conclude`."""
    labels = np.array([row.label for row in train if row.label is not None], dtype=np.int64)
    return {
        "train_prior": metrics.class_prior(labels),
        "baseline_probabilities": baselines.logistic_regression(train, rows),
    }


def conclude(
    run: Run,
    config: Config,
    predicted: Predictions,
    rows: Sequence[Comparison],
    further: Mapping[str, Any] | None = None,
    **baseline: Any,
) -> Outcome:
    """Write predictions, metrics and report of a scored set of rows, and print the summary.

    Rows without any label give ``submission.csv`` too, and metrics without a score.

    Args:
        rows: the scored rows, in the order of ``predicted``.
        further: metrics that are known already, such as the speed.
        baseline: ``train_prior``, ``baseline_probabilities`` of ``metrics.score`` (:func:`learned_from`).
    """
    predictions.write(run.predictions, predicted)
    result = metrics.score(
        predicted, true_probabilities=_true_probabilities(rows), seed=config.seed, **baseline
    ) | dict(further or {})
    write_json(run.metrics, result)
    report.write_report(run.path, result, predicted, rows, **run.for_report())
    if predicted.labelled.any():
        report.print_summary(result)
    else:
        predictions.write_submission(run.submission, predicted)
        print(f"{len(predicted)} rows predicted: {run.submission}")
    print(f"run directory: {run.path}")
    return Outcome(result, predicted, rows)


def _true_probabilities(rows: Sequence[Comparison]) -> NDArray[np.float64] | None:
    known = [row.true_probabilities for row in rows if row.true_probabilities is not None]
    return np.array(known) if rows and len(known) == len(rows) else None


@dataclass(frozen=True)
class _ToScore:
    rows: Sequence[Comparison]
    train: Sequence[Comparison]
    """What the baselines learn from; none when a whole file is scored."""
    fold: int
    groups: NDArray[Any] | None


def rescore(config: Config, trained: Run | None, output: Run) -> Outcome:
    """Load a trained or untrained model and score rows with it.

    Scored is the validation fold that the run held out. A file that the run was not trained on, or one
    without labels, is scored whole.
    """
    chosen = _rows_to_score(config, trained, output)
    predicted, speed = _predict(config, trained, chosen, output)
    if trained is not None and chosen.fold != WHOLE:
        _compare(predicted, trained)
    baseline = learned_from(chosen.train, chosen.rows) if chosen.train else {}
    return conclude(output, config, predicted, chosen.rows, {"scoring": speed}, **baseline)


def merge(config: Config, trained: Sequence[Run], output: Run) -> Outcome:
    """Several runs as one: their folds as a cross-validation, runs over the same rows averaged and compared.

    When ``data`` names rows that the runs were not trained on, every run predicts them first.
    """
    if _has_own_data(config, trained[0]):
        merged = crossvalidation.merge([run.path for run in trained], fit_weights=config.eval.fit_weights)
        log.info("%s", merged.description)
        write_json(output.data, {"runs": merged.members, "weights": merged.weights})
        by_id = {row.id: row for row in data.load_rows(config.data)}
        predicted = merged.predictions
        rows = [by_id[id] for id in predicted.ids]
        baseline: dict[str, Any] = {"train_prior": merged.train_prior}
        if len(np.unique(predicted.folds)) > 1:
            baseline["baseline_probabilities"] = baselines.cross_validated(rows, predicted.folds)
        compared = crossvalidation.compared(merged, seed=config.seed)
        return conclude(output, config, predicted, rows, {"runs_compared": compared}, **baseline)
    chosen = _rows_to_score(config, trained[0], output)
    parts = [_predict(parse(run.settings()), run, chosen, output)[0] for run in trained]
    return conclude(output, config, averaging.average(parts), chosen.rows)


def _rows_to_score(config: Config, trained: Run | None, output: Run) -> _ToScore:
    if trained is not None and not _has_own_data(config, trained):
        return _ToScore(data.load_rows(config.data, output.path), [], WHOLE, None)
    if trained is None:
        rows = data.load_rows(config.data, output.path)
        if all(row.label is None for row in rows):
            return _ToScore(rows, [], WHOLE, None)
    fold = data.limited(data.load_fold(config.data, config.fold, output.path), config.debug, config.seed)
    return _ToScore(fold.validation, fold.train, config.fold, fold.groups)


def _has_own_data(config: Config, trained: Run) -> bool:
    return parse(trained.settings()).data == config.data


def _predict(
    config: Config, trained: Run | None, chosen: _ToScore, output: Run
) -> tuple[Predictions, dict[str, float]]:
    encoder = RowEncoder(models.load_tokenizer(config.model), config.prompt)
    encoded = encode_cached(encoder, chosen.rows, progress=True)
    preview.write_samples(output, encoder, encoded)
    preflight.show(preflight.checks(config, encoder, models.local_folder(config.model, weights=True)))
    model: nn.Module = models.load_model(config.model)
    if trained is not None:
        model = models.load_adapters(model, trained.adapter)
    return predict(model, encoder, chosen.rows, encoded, config, chosen.fold, chosen.groups)


def _compare(predicted: Predictions, trained: Run) -> None:
    """Say how far the new probabilities are from those that the run stored."""
    if not trained.predictions.is_file():
        return
    stored = predictions.read(trained.predictions)
    if list(stored.ids) != list(predicted.ids):
        log.warning("%s holds other rows than were scored now; they can't be compared", trained.predictions)
        return
    largest = float(np.abs(stored.probabilities - predicted.probabilities).max())
    log.info("largest difference from the probabilities stored in %s: %.1e", trained.predictions, largest)
