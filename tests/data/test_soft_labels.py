"""A teacher's probabilities become training targets, unless they are unusable or would leak."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from factories import config

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.arena import simulate
from lmsys_unsloth.data.comparison import Comparison, label_array, rows_fingerprint
from lmsys_unsloth.data.dataset import FoldData, limit_rows, load_fold
from lmsys_unsloth.data.earlier_runs import use_earlier_runs
from lmsys_unsloth.data.earlier_runs.soft_labels import mixed
from lmsys_unsloth.data.selection import select_for_trained
from lmsys_unsloth.data.stored_rows import swap_rows
from lmsys_unsloth.data.trained_rows import save_trained_rows
from lmsys_unsloth.evaluate.predictions import Predictions, write_predictions
from lmsys_unsloth.simulate import main as write_arena

DATA = ("data.rows=30", "data.folds=3")
ROWS = simulate(30, 0, "short")


def probabilities(rows: Sequence[Comparison]) -> np.ndarray:
    return np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], len(rows)).astype(np.float32)


def write(path: Path, rows: Sequence[Comparison], folds: Any = -1) -> Path:
    """Predictions of rows as train.py and eval.py write them."""
    folds = np.broadcast_to(np.asarray(folds), len(rows)).astype(np.int64)
    predicted = Predictions([row.id for row in rows], folds, probabilities(rows), label_array(rows))
    write_predictions(path, predicted)
    return path


def folds_of(*overrides: str) -> dict[str, int]:
    """Fold of every row of the arena."""
    made = [load_fold(config(*DATA, *overrides).data, k) for k in range(3)]
    return {row.id: k for k, fold in enumerate(made) for row in fold.validation}


def cross_validation(path: Path, *overrides: str) -> str:
    """Output directory of ``eval.py runs=[…]`` over all folds."""
    run = Run(path)
    folds = folds_of(*overrides)
    write(run.predictions, ROWS, [folds[row.id] for row in ROWS])
    run.config.write_text("data: {}\n")
    write_json(run.data, {"fingerprint": rows_fingerprint(ROWS), "runs": [["gone0"], ["gone1"], ["gone2"]]})
    return str(path)


def scored_run(path: Path, fold: int, *overrides: str) -> str:
    """Output directory of ``eval.py run=RUN eval.trained_rows=include`` for a teacher of one fold."""
    teacher, output = Run(path / "teacher"), Run(path / "scored")
    settings = config(*DATA, "eval.trained_rows=include", *overrides)
    save_trained_rows(teacher.training_rows, load_fold(settings.data, fold, teacher).train)
    select_for_trained(settings, [teacher], ROWS, output)
    output.config.write_text("data: {}\n")
    write(output.predictions, ROWS)
    return str(output.path)


def student(tmp_path: Path, source: str | Path, *overrides: str, fold: int = 0) -> FoldData:
    settings = config(*DATA, f"fold={fold}", f"data.soft_labels={source}", *overrides)
    run = Run(tmp_path / "student")
    made = limit_rows(load_fold(settings.data, fold, run), settings.debug, settings.seed)
    return use_earlier_runs(settings, made, run)


def test_the_target_is_the_weighted_mixture_with_the_own_label(tmp_path: Path) -> None:
    source = cross_validation(tmp_path / "cv")
    plain = load_fold(config(*DATA).data, 0)
    fold = student(tmp_path, source, "train.teacher_weight=0.25")
    teacher = dict(zip((row.id for row in ROWS), probabilities(ROWS).astype(float), strict=True))
    assert fold.validation == plain.validation
    for row, before in zip(fold.train, plain.train, strict=True):
        assert dataclasses.replace(row, soft_label=None) == before
        p = teacher[row.id] / teacher[row.id].sum()
        expected = 0.75 * np.eye(3)[before.label] + 0.25 * p  # type: ignore[index]
        np.testing.assert_allclose(row.soft_label, expected, atol=1e-12)  # type: ignore[arg-type]


def test_own_soft_labels_are_mixed_and_rows_without_a_label_take_the_teacher_alone() -> None:
    row = dataclasses.replace(ROWS[0], soft_label=(0.5, 0.5, 0.0))
    assert mixed(row, (0.0, 0.0, 1.0), 0.5).soft_label == (0.25, 0.25, 0.5)
    unlabelled = dataclasses.replace(ROWS[0], label=None)
    assert mixed(unlabelled, (0.1, 0.2, 0.7), 0.5).soft_label == (0.1, 0.2, 0.7)


def test_a_swapped_copy_has_the_swapped_target(tmp_path: Path) -> None:
    fold = student(tmp_path, cross_validation(tmp_path / "cv"))
    rows = swap_rows(fold.train, "both", 0)
    for row, copy in zip(rows[::2], rows[1::2], strict=True):
        assert row.soft_label is not None and copy.soft_label is not None
        assert copy.soft_label == (row.soft_label[1], row.soft_label[0], row.soft_label[2])


@pytest.mark.numeric
def test_the_gradient_is_that_of_cross_entropy_plus_weighted_divergence() -> None:
    logits, p, w, label = torch.randn(3, dtype=torch.float64), (0.2, 0.5, 0.3), 0.3, 1
    row = dataclasses.replace(ROWS[0], label=label)
    gradients = []
    for kind in ("mixture", "sum"):
        x = logits.clone().requires_grad_()
        log_q, teacher = x.log_softmax(0), torch.tensor(p, dtype=torch.float64)
        if kind == "mixture":
            loss = -(torch.tensor(mixed(row, p, w).soft_label, dtype=torch.float64) * log_q).sum()
        else:
            divergence = (teacher * (teacher.log() - log_q)).sum()
            loss = -(1 - w) * log_q[label] + w * divergence
        loss.backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


def test_the_run_records_the_teacher(tmp_path: Path) -> None:
    source = scored_run(tmp_path, fold=0)
    student(tmp_path, source, "train.teacher_weight=0.5")
    saved = json.loads((tmp_path / "student" / "data.json").read_text())["teacher"]
    assert saved == {
        "source": source,
        "sha256": hashlib.sha256((tmp_path / "scored" / "predictions.parquet").read_bytes()).hexdigest(),
        "weight": 0.5, "rows": 20, "rows_without_own_label": 0, "rows_with_own_soft_label_only": 0,
        "predicted_by": "runs", "runs": [str(tmp_path / "teacher")], "warnings": [],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["cv", "cv/predictions.parquet"])
def test_out_of_fold_predictions_of_the_same_folds_are_accepted(tmp_path: Path, name: str) -> None:
    cross_validation(tmp_path / "cv")
    fold = student(tmp_path, tmp_path / name, fold=1)
    assert fold.description["teacher"]["predicted_by"] == "cross-validation"
    assert fold.description["teacher"]["warnings"] == []


def test_a_cross_validation_with_other_folds_is_refused(tmp_path: Path) -> None:
    source = cross_validation(tmp_path / "cv", "data.fold_seed=1")
    with pytest.raises(
        UserError, match=r"a cross-validation with other folds, \d+ of 30 rows.*\n.*fold_file"
    ):
        student(tmp_path, source)


@pytest.mark.parametrize(("fold", "overrides"), [(1, ()), (0, ("data.fold_seed=1",))])
def test_a_teacher_of_another_fold_or_other_folds_is_refused(
    tmp_path: Path, fold: int, overrides: tuple[str, ...]
) -> None:
    source = scored_run(tmp_path, fold, *overrides)
    with pytest.raises(UserError, match=r"teacher was trained on \d+ of the 10 validation rows of this run"):
        student(tmp_path, source)
    student(tmp_path, source, "debug.evaluate_on_train=true")  # its score is about trained rows anyway


def test_a_file_of_unknown_origin_is_accepted_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pd.DataFrame(probabilities(ROWS).astype(float), columns=["p_a", "p_b", "p_tie"])
    table.insert(0, "id", [row.id for row in ROWS])
    table.to_parquet(tmp_path / "teacher.parquet")
    fold = student(tmp_path, tmp_path / "teacher.parquet")
    (warning,) = fold.description["teacher"]["warnings"]
    assert "does not say which runs made it" in warning and warning in caplog.text


def test_a_run_s_own_predictions_miss_the_training_rows(tmp_path: Path) -> None:
    fold = load_fold(config(*DATA).data, 0)
    source = write(tmp_path / "p.parquet", [*fold.validation, *fold.train[:5]], 0)
    with pytest.raises(UserError) as caught:
        student(tmp_path, source)
    assert f"15 of 20 training rows are missing: ids {fold.train[5].id}," in str(caught.value)
    assert "and 5 more" in str(caught.value) and "python eval.py runs=[RUN0,RUN1,…]" in str(caught.value)


def test_predictions_of_other_data_are_refused(tmp_path: Path) -> None:
    renamed = [dataclasses.replace(row, id=f"x{row.id}") for row in ROWS]
    source = write(tmp_path / "renamed.parquet", renamed)
    with pytest.raises(UserError, match=r"none of the 20 training rows is in it; it has ids x"):
        student(tmp_path, source)
    others = [dataclasses.replace(row, id=ROWS[k].id) for k, row in enumerate(simulate(30, 1, "short"))]
    source = write(tmp_path / "others.parquet", others)
    with pytest.raises(UserError, match=r"\d+ of 20 training rows have another label there \(ids "):
        student(tmp_path, source)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((0.5, 0.4, 0.0), "they must sum to 1"),
        ((1.2, -0.2, 0.0), "none negative"),
        ((np.nan, 0.5, 0.5), "they must be numbers"),
        ((0.5, 0.5, np.inf), "they must be numbers"),
    ],
)
def test_values_that_are_no_probabilities_are_listed(tmp_path: Path, values: Any, problem: str) -> None:
    path = write(tmp_path / "p.parquet", ROWS)
    table = pd.read_parquet(path)
    table.loc[[2, 7], ["p_a", "p_b", "p_tie"]] = values
    table.to_parquet(path)
    with pytest.raises(UserError) as caught:
        student(tmp_path, path)
    message = str(caught.value)
    assert "2 of 30 rows can't be used" in message and problem in message
    assert f"id {ROWS[2].id}: " in message and f"id {ROWS[7].id}: " in message


def test_rounded_probabilities_are_renormalised(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", ROWS)
    table = pd.read_parquet(path)
    table[["p_a", "p_b", "p_tie"]] = (0.3331, 0.3331, 0.3331)
    table.to_parquet(path)
    fold = student(tmp_path, path, "train.teacher_weight=1.0")
    np.testing.assert_allclose([row.soft_label for row in fold.train], 1 / 3, atol=1e-12)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        student(tmp_path, tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="can't be read as Parquet"):
        student(tmp_path, tmp_path / "broken.parquet")
    pd.DataFrame({"id": ["1"], "p_a": [1.0]}).to_parquet(tmp_path / "few.parquet")
    with pytest.raises(UserError, match="lacks p_b, p_tie; it has id, p_a"):
        student(tmp_path, tmp_path / "few.parquet")
    write(tmp_path / "twice.parquet", [*ROWS, ROWS[0]])
    with pytest.raises(UserError, match=f"(?s)1 of 31 rows.*id {ROWS[0].id}: the id is used twice"):
        student(tmp_path, tmp_path / "twice.parquet")


def test_unlabelled_extra_rows_need_a_teacher_and_take_its_probabilities(tmp_path: Path) -> None:
    assert write_arena(["rows=6", "seed=5", "length=short", f"out={tmp_path / 'all.csv'}"]) == 0
    extra = pd.read_csv(tmp_path / "all.csv", dtype=str)
    extra["id"] = [f"u{k}" for k in range(6)]
    extra.drop(columns=[name for name in extra if "winner" in name]).to_csv(
        tmp_path / "extra.csv", index=False
    )
    rows = [dataclasses.replace(r, id=f"u{k}", label=None) for k, r in enumerate(simulate(6, 5, "short"))]
    source = write(tmp_path / "p.parquet", [*ROWS, *rows])
    fold = student(tmp_path, source, f"data.extra=[{tmp_path / 'extra.csv'}]")
    added = fold.train[20:]
    assert added and all(row.label is None and row.soft_label is not None for row in added)
    assert fold.description["teacher"]["rows_without_own_label"] == len(added)
    with pytest.raises(UserError, match="6 of 6 rows have no label"):
        load_fold(config(*DATA, f"data.extra=[{tmp_path / 'extra.csv'}]").data, 0)


def test_extra_rows_with_own_soft_labels_keep_them_when_the_teacher_lacks_them(tmp_path: Path) -> None:
    assert write_arena(["rows=6", "seed=5", "length=short", f"out={tmp_path / 'all.csv'}"]) == 0
    extra = pd.read_csv(tmp_path / "all.csv", dtype=str)
    extra["id"] = [f"u{k}" for k in range(6)]
    extra[["p_a", "p_b", "p_tie"]] = (0.2, 0.3, 0.5)
    extra.to_csv(tmp_path / "extra.csv", index=False)
    fold = student(tmp_path, cross_validation(tmp_path / "cv"), f"data.extra=[{tmp_path / 'extra.csv'}]")
    added = fold.train[20:]
    assert added and all(row.soft_label == (0.2, 0.3, 0.5) for row in added)
    assert "which keep their own soft labels: ids u" in fold.description["teacher"]["warnings"][0]
