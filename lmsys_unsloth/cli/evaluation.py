"""What ``eval.py`` does: score a trained run, an untrained model, or several runs together."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.cli.prepare import prepare_scoring
from lmsys_unsloth.config.parsing import Config, parse_config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.data.dataset import load_rows
from lmsys_unsloth.data.selection import (
    Selection,
    is_split_from,
    select_for_trained,
    select_for_untrained,
)
from lmsys_unsloth.evaluate import averaging, baselines, cross_validation, predictions
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.evaluate.scoring import predict_rows
from lmsys_unsloth.model import loading
from lmsys_unsloth.prompting.prepared import Prepared
from lmsys_unsloth.report.results import Outcome, report_results, report_scoring

log = logging.getLogger(__name__)


def evaluate_untrained(config: Config, output: Run) -> Outcome:
    """Score a base model without adapters on the validation fold, or on a whole file without labels."""
    selection = select_for_untrained(config, output)
    prepared = prepare_scoring(config, selection, output)
    model = loading.load_model(config.model)
    predicted, speed = predict_rows(model, prepared, config)
    return report_scoring(output, config, prepared, predicted, speed)


def evaluate_run(member: Member, output: Run) -> Outcome:
    """Score a trained run on rows that it was not trained on."""
    rows = load_rows(member.config.data, output)
    selection = select_for_trained(member.config, [member.run], rows, output)
    prepared = prepare_scoring(member.config, selection, output)
    model = loading.load_adapters(loading.load_model(member.config.model), member.run.adapter)
    predicted, speed = predict_rows(model, prepared, member.config)
    _compare_with_stored(predicted, member.run)
    return report_scoring(output, member.config, prepared, predicted, speed)


def evaluate_runs(members: Sequence[Member], output: Run) -> Outcome:
    """Several runs as one prediction.

    Runs over the data set that they were split from are merged: folds into a cross-validation, runs over
    the same fold into an average. Over any other file all runs predict every row that none of them was
    trained on, and are averaged.
    """
    config = members[0].config
    rows = load_rows(config.data, output)
    own = config.eval.trained_rows == "exclude" and all(is_split_from(m.run, rows) for m in members)
    if own:
        return _merge_folds(members, rows, output)
    selection = select_for_trained(config, [member.run for member in members], rows, output)
    parts = _predict_all(members, [selection] * len(members), output)
    return report_results(
        output,
        config,
        averaging.average(parts),
        selection.rows,
        {"trained_rows": dataclasses.asdict(selection.overlap)} if selection.overlap else None,
    )


def _merge_folds(members: Sequence[Member], rows: Sequence[Comparison], output: Run) -> Outcome:
    config = members[0].config
    again = [member for member in members if not _stored_predictions_hold(member)]
    _require_adapters(again)
    selections = [select_for_trained(m.config, [m.run], rows, output) for m in again]
    fresh = dict(zip((m.run.path for m in again), _predict_all(again, selections, output), strict=True))
    parts = [fresh.get(m.run.path) or predictions.read_predictions(m.run.predictions) for m in members]
    merged = cross_validation.merge_runs(
        [member.run for member in members], parts, fit_weights=config.eval.fit_weights
    )
    log.info("%s", merged.description)
    write_json(
        output.data,
        {"fingerprint": rows_fingerprint(rows), "runs": merged.members, "weights": merged.weights},
    )
    by_id = {row.id: row for row in rows}
    scored = [by_id[row_id] for row_id in merged.predictions.ids]
    baseline: dict[str, Any] = {"train_prior": merged.train_prior}
    if len(np.unique(merged.predictions.folds)) > 1:
        baseline["baseline_probabilities"] = baselines.cross_validated(scored, merged.predictions.folds)
    compared = cross_validation.compared(merged, seed=config.seed)
    return report_results(output, config, merged.predictions, scored, {"runs_compared": compared}, **baseline)


def _require_adapters(members: Sequence[Member]) -> None:
    missing = [str(m.run.path) for m in members if not m.run.adapter.is_dir()]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: has no adapters, so its rows can't be scored again as eval.* asks.\n"
            "  Name the run directories that train.py made, or leave eval.* out to use stored predictions."
        )


def _stored_predictions_hold(member: Member) -> bool:
    """Whether the run's stored predictions are what its configuration under the overrides would give."""
    if not member.run.predictions.is_file():
        return False
    stored = parse_config(member.run.settings())

    def deciding(config: Config) -> dict[str, Any]:
        return config.model_dump(include={"model", "prompt", "fold", "debug"}) | config.eval.model_dump(
            include={"swap", "swap_share"}
        )

    return deciding(stored) == deciding(member.config)


def _predict_all(
    members: Sequence[Member], selections: Sequence[Selection], output: Run
) -> list[Predictions]:
    """Predictions of each member for its selection; base models are loaded and rows encoded once each."""
    found: dict[int, Predictions] = {}
    prepared: dict[tuple[str, int], Prepared] = {}
    by_model: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        by_model.setdefault(_key(member.config, "model"), []).append(index)
    for indices in by_model.values():
        base = None
        for index in indices:
            member, selection = members[index], selections[index]
            key = _key(member.config, "model", "prompt"), id(selection)
            if key not in prepared:
                prepared[key] = prepare_scoring(member.config, selection, output)
            if base is None:
                base = loading.load_model(member.config.model)
            adapted = loading.load_adapters(base, member.run.adapter)
            found[index], _ = predict_rows(adapted, prepared[key], member.config)
            base = loading.remove_adapters(adapted)
    return [found[index] for index in range(len(members))]


def _key(config: Config, *sections: str) -> str:
    return json.dumps(config.model_dump(mode="json", include=set(sections)), sort_keys=True)


def _compare_with_stored(predicted: Predictions, trained: Run) -> None:
    """Log how far the new probabilities are from those that the run stored for the same rows."""
    if not trained.predictions.is_file():
        return
    stored = predictions.read_predictions(trained.predictions)
    if list(stored.ids) != list(predicted.ids):
        return
    largest = float(np.abs(stored.probabilities - predicted.probabilities).max())
    log.info("largest difference from the probabilities stored in %s: %.1e", trained.predictions, largest)
