"""Folds are merged only when they belong together; runs over the same rows are averaged."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate import predictions
from lmsys_unsloth.evaluate.averaging import best_weights
from lmsys_unsloth.evaluate.cross_validation import Merged, compare_models, merge_runs
from lmsys_unsloth.evaluate.predictions import Predictions

ROWS = 60
FOLDS = 3
RANDOM = np.random.default_rng(0)
TRUTH = RANDOM.dirichlet([1, 1, 1], ROWS)
LABELS = (RANDOM.random((ROWS, 1)) > TRUTH.cumsum(axis=1)).sum(axis=1).clip(0, 2)


def merge(paths: list[Path], **options) -> Merged:
    """Merge the stored predictions of run directories."""
    runs = [Run(path) for path in paths]
    return merge_runs(runs, [predictions.read_predictions(run.predictions) for run in runs], **options)


def make_run(
    path: Path,
    fold: int | None,
    p: np.ndarray = TRUTH,
    *,
    fingerprint: str = "data",
    division: str = "folds",
    keep: int | None = None,
    **extra,
) -> Path:
    """A run directory as train.py leaves it, with only the files that merging reads."""
    path.mkdir(parents=True)
    fold_of = np.arange(ROWS) % FOLDS
    index = (np.arange(ROWS) if fold is None else np.flatnonzero(fold_of == fold))[:keep]
    predictions.write_predictions(
        path / "predictions.parquet",
        Predictions(
            [f"r{i}" for i in index],
            fold_of[index],
            p[index].astype(np.float32),
            LABELS[index],
            {"group": index.tolist(), **{name: values for name, values in extra.items()}},
        ),
    )
    described = {
        "fingerprint": fingerprint,
        "folds": {"fingerprint": division, "count": FOLDS, "fold": fold},
        "train": {"labels": {"a": 2, "b": 1, "tie": 1}},
    }
    (path / "data.json").write_text(json.dumps(described))
    with (path / "folds.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "fold", "group"))
        writer.writerows((f"r{i}", fold_of[i], i) for i in range(ROWS))
    return path


def test_folds_are_merged_with_every_row_once(tmp_path):
    merged = merge([make_run(tmp_path / str(k), k) for k in range(FOLDS)])
    assert sorted(merged.predictions.ids) == sorted(f"r{i}" for i in range(ROWS))
    position = [int(id[1:]) for id in merged.predictions.ids]
    np.testing.assert_allclose(merged.predictions.probabilities, TRUTH[position], atol=1e-6)
    np.testing.assert_array_equal(merged.predictions.labels, LABELS[position])
    assert merged.description == "3 folds merged"
    assert merged.weights is None
    assert merged.train_prior == pytest.approx((0.5, 0.25, 0.25))


def test_missing_fold_is_named_with_its_rows(tmp_path):
    with pytest.raises(
        UserError, match=r"20 of 60 rows are missing .* ids r2, r5, .* and 10 more, of fold 2"
    ):
        merge([make_run(tmp_path / str(k), k) for k in (0, 1)])


def test_fold_that_was_scored_in_part_is_missing_rows(tmp_path):
    runs = [make_run(tmp_path / str(k), k, keep=5 if k == 1 else None) for k in range(FOLDS)]
    with pytest.raises(UserError, match=r"15 of 60 rows are missing .*of fold 1\.\n.*debug\.validation_rows"):
        merge(runs)


def test_double_rows_are_listed(tmp_path):
    with pytest.raises(UserError, match=r"both predict ids r1, r4, .*\(20 rows double\)"):
        merge([make_run(tmp_path / "all", None), make_run(tmp_path / "one", 1)])


def test_same_id_twice_in_one_run(tmp_path):
    run = make_run(tmp_path / "x", 0)
    p = predictions.read_predictions(run / "predictions.parquet")
    predictions.write_predictions(run / "predictions.parquet", p.take(np.array([0, 0, 1])))
    with pytest.raises(UserError, match="id r0 predicted more than once"):
        merge([run])


def test_mixed_fold_definitions_and_data_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"divide the rows into folds differently: folds and other.*\n.*fold_seed"
    ):
        merge([make_run(tmp_path / f"a{k}", k, division="other" if k else "folds") for k in range(FOLDS)])
    with pytest.raises(UserError, match=r"different data: data and else"):
        merge([make_run(tmp_path / f"b{k}", k, fingerprint="else" if k else "data") for k in range(FOLDS)])


def test_runs_over_the_same_rows_are_averaged_whatever_their_order(tmp_path):
    flat = np.full((ROWS, 3), 1 / 3)
    first = make_run(tmp_path / "1", 0, p_swap_a=[0.5] * 20)
    second = make_run(tmp_path / "2", 0, flat)
    p = predictions.read_predictions(second / "predictions.parquet")
    predictions.write_predictions(second / "predictions.parquet", p.take(np.arange(20)[::-1]))
    merged = merge([first, second])
    index = np.flatnonzero(np.arange(ROWS) % FOLDS == 0)
    assert merged.predictions.ids == [f"r{i}" for i in index]
    np.testing.assert_allclose(merged.predictions.probabilities, (TRUTH[index] + 1 / 3) / 2, atol=1e-6)
    assert merged.description == "2 runs averaged" and merged.weights == [0.5, 0.5]
    assert "p_swap_a" not in merged.predictions.extra


def test_folds_of_several_models_are_averaged_and_merged(tmp_path):
    runs = [make_run(tmp_path / f"{m}{k}", k) for m in "xy" for k in range(FOLDS)]
    merged = merge(runs)
    assert len(merged.predictions) == ROWS
    assert merged.description == "3 folds merged, 2 runs averaged in each"
    assert [len(names) for names in merged.members] == [2, 2, 2]


def test_disagreeing_labels_are_an_error(tmp_path):
    first, second = make_run(tmp_path / "1", 0), make_run(tmp_path / "2", 0)
    p = predictions.read_predictions(second / "predictions.parquet")
    p.labels[3] = (p.labels[3] + 1) % 3
    predictions.write_predictions(second / "predictions.parquet", p)
    with pytest.raises(UserError, match="disagree on the label of id r9;"):
        merge([first, second])


def test_fitted_weights_prefer_the_better_model_and_are_fitted_on_other_rows(tmp_path):
    noise = np.random.default_rng(5).dirichlet([1, 1, 1], ROWS)
    runs = [
        make_run(tmp_path / f"{m}{k}", k, p) for m, p in (("x", TRUTH), ("y", noise)) for k in range(FOLDS)
    ]
    merged = merge(runs, fit_weights=True)
    assert merged.weights[0] > 0.8 and sum(merged.weights) == pytest.approx(1)
    stack = np.stack([TRUTH, noise]).astype(np.float32).astype(float)
    inside = np.arange(ROWS) % FOLDS == 0
    weights = best_weights(stack[:, ~inside], LABELS[~inside])
    expected = np.tensordot(weights, stack[:, inside], axes=1)
    np.testing.assert_allclose(merged.predictions.probabilities[:20], expected, atol=1e-6)


def test_weights_need_several_labelled_runs(tmp_path):
    with pytest.raises(UserError, match="same number of runs, two or more; here: 1"):
        merge([make_run(tmp_path / "x", 0)], fit_weights=True)
    same = [make_run(tmp_path / name, 0) for name in ("one", "two")]
    for run in same:
        stored = predictions.read_predictions(run / "predictions.parquet")
        stored.labels[0] = -1
        predictions.write_predictions(run / "predictions.parquet", stored)
    with pytest.raises(UserError, match="some rows have no label; average equally instead"):
        merge(same, fit_weights=True)
    for run in same:
        stored = predictions.read_predictions(run / "predictions.parquet")
        one_prompt = dataclasses.replace(stored, extra={"group": ["g"] * len(stored)})
        stored.labels[0] = 0
        predictions.write_predictions(run / "predictions.parquet", one_prompt)
    with pytest.raises(UserError, match="all rows have one prompt; average equally instead"):
        merge(same, fit_weights=True)
    with pytest.raises(UserError, match="nothing to merge"):
        merge([])


def test_runs_that_do_not_say_what_all_rows_are(tmp_path):
    runs = [make_run(tmp_path / str(k), k) for k in range(FOLDS)]
    (runs[0] / "folds.csv").unlink()
    with pytest.raises(UserError, match=r"has no folds\.csv"):
        merge(runs)


def test_averaged_models_are_compared_over_all_folds(tmp_path):
    flat = np.full((ROWS, 3), 1 / 3)
    good = [make_run(tmp_path / f"good{fold}", fold) for fold in range(FOLDS)]
    poor = [make_run(tmp_path / f"poor{fold}", fold, flat) for fold in range(FOLDS)]
    first, second = compare_models(merge([*good, *poor]))
    assert first.runs == tuple(map(str, good)) and second.runs == tuple(map(str, poor))
    assert first.difference is None and second.log_loss == pytest.approx(np.log(3))
    assert second.difference == pytest.approx(second.log_loss - first.log_loss)
    assert second.difference_ci[0] < second.difference < second.difference_ci[1]
    assert compare_models(merge(good)) == ()


def test_models_are_compared_row_by_row_whatever_their_order(tmp_path):
    paths = [make_run(tmp_path / "1", None), make_run(tmp_path / "2", None, np.full((ROWS, 3), 1 / 3))]
    in_order = compare_models(merge(paths))
    p = predictions.read_predictions(paths[1] / "predictions.parquet")
    predictions.write_predictions(paths[1] / "predictions.parquet", p.take(np.arange(ROWS)[::-1]))
    assert compare_models(merge(paths)) == in_order
    assert in_order[1].difference_ci[0] > 0
