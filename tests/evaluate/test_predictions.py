"""Predictions are read as they were written, and submissions are what Kaggle expects."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import UNLABELLED
from lmsys_unsloth.evaluate import predictions
from lmsys_unsloth.evaluate.predictions import Predictions


def some(n: int = 4, **extra) -> Predictions:
    random = np.random.default_rng(0)
    p = random.dirichlet([1, 1, 1], n).astype(np.float32)
    labels = np.arange(n) % 3
    labels[-1] = UNLABELLED
    return Predictions([str(i) for i in range(n)], np.zeros(n, dtype=np.int64), p, labels, extra)


def test_round_trip_and_column_contract(tmp_path):
    before = some(n_turns=[1, 2, 1, 1], group=["x", "y", None, "x"], n_tokens=np.array([0, 5, 0, 0]))
    path = tmp_path / "predictions.parquet"
    predictions.write_predictions(path, before)
    table = pq.read_table(path)
    assert table.column_names == [
        "id",
        "fold",
        "p_a",
        "p_b",
        "p_tie",
        "label",
        "n_turns",
        "group",
        "n_tokens",
    ]
    assert [str(table.schema.field(name).type) for name in ("id", "fold", "p_a", "label")] == [
        "string", "int32", "float", "int32",
    ]  # fmt: skip
    assert table.column("label").to_pylist() == [0, 1, 2, None]
    after = predictions.read_predictions(path)
    np.testing.assert_array_equal(after.probabilities, before.probabilities)
    np.testing.assert_array_equal(after.labels, before.labels)
    assert after.ids == before.ids and after.extra["n_tokens"] == [0, 5, 0, 0]
    assert after.groups == ["x", "y", "id 2", "x"]
    assert not list(tmp_path.glob(".*"))


def test_reading_explains_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"no such file.*eval.py run="):
        predictions.read_predictions(tmp_path / "predictions.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="can't be read as Parquet"):
        predictions.read_predictions(tmp_path / "broken.parquet")
    predictions.write_predictions(tmp_path / "p.parquet", some())
    pq.write_table(pq.read_table(tmp_path / "p.parquet").drop_columns(["label"]), tmp_path / "p.parquet")
    with pytest.raises(UserError, match="lacks label"):
        predictions.read_predictions(tmp_path / "p.parquet")


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="4 ids, but n_turns has 1"):
        some(n_turns=[1])


def test_submission(tmp_path):
    p = some(50)
    path = tmp_path / "submission.csv"
    predictions.write_submission(path, p)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert [row["id"] for row in rows] == p.ids
    values = np.array([[float(row[name]) for name in predictions.SUBMISSION_COLUMNS[1:]] for row in rows])
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(values, p.probabilities, atol=1e-6)


def test_submission_refuses_an_id_twice(tmp_path):
    p = some()
    double = Predictions(["7", "8", "7", "9"], p.folds, p.probabilities, p.labels)
    with pytest.raises(UserError, match="id 7: predicted more than once"):
        predictions.write_submission(tmp_path / "s.csv", double)
    assert not (tmp_path / "s.csv").exists()


def test_swapped_probabilities_are_returned_to_the_original_order():
    p = Predictions(["x"], np.zeros(1, int), np.array([[0.6, 0.3, 0.1]], np.float32), np.array([0]))
    both = predictions.with_swap(p, np.array([[0.5, 0.4, 0.1]]))  # A is shown second
    np.testing.assert_allclose(both.probabilities, [[0.5, 0.4, 0.1]], atol=1e-6)
    forward, swapped = predictions.swap_views(both)
    np.testing.assert_allclose(forward, [[0.6, 0.3, 0.1]], atol=1e-6)
    np.testing.assert_allclose(swapped, [[0.4, 0.5, 0.1]], atol=1e-6)


def test_only_the_least_certain_rows_are_swapped(tmp_path):
    p = some(10)
    chosen = predictions.least_certain(p.probabilities, 0.3)
    assert len(chosen) == 3
    top = p.probabilities.max(axis=1)
    assert top[chosen].max() <= np.delete(top, chosen).min()
    both = predictions.with_swap(p, np.full((3, 3), 1 / 3), chosen)
    rest = np.delete(np.arange(10), chosen)
    np.testing.assert_array_equal(both.probabilities[rest], p.probabilities[rest])
    predictions.write_predictions(tmp_path / "p.parquet", both)
    forward, _ = predictions.swap_views(predictions.read_predictions(tmp_path / "p.parquet"))
    np.testing.assert_array_equal(forward, p.probabilities[chosen])
    assert predictions.swap_views(p) is None


def test_take():
    p = some(4, group=["a", "b", "c", "d"])
    assert p.take(p.labelled).ids == ["0", "1", "2"]
    assert p.take(np.array([2, 0])).extra["group"] == ["c", "a"]
