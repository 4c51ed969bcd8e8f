"""A leaking split scores better than it should, and the report says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from preferences import labelled, read_all

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.duplicates import find_similar
from lmsys_unsloth.data.folds import make_folds
from lmsys_unsloth.data.leaks import admit_extra, answer_texts, answer_warnings, leak_report
from lmsys_unsloth.data.sources import Rows

LONG = "Explain to me in plain words how a sailing boat can move against the wind, and what a keel is for."


def _report(rows: Sequence[Comparison], held_out: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    prompts = find_similar((row.prompt_text for row in rows), 0.8)
    answers = find_similar((text for row in rows for text in answer_texts(row)), 0.8)
    return leak_report(rows, held_out, prompts, answers, prompts.near)


def test_overlaps_are_counted_by_validation_row() -> None:
    rows = [
        labelled("train", LONG, 0),
        Comparison("train2", ("Other",), (LONG,), ("short",), 0),
        labelled("exact", LONG.upper(), 1),
        labelled("near", LONG + " Thanks!", 1),
        Comparison("answer", ("New",), ("short",), (LONG + "!",), 1),
        labelled("free", "What is the boiling point of water on the top of a high mountain?", 2),
    ]
    report = _report(rows, np.array([False, False, True, True, True, True]))
    assert report["prompts"] == {"exact": 1, "near": 2, "share_near": 0.5}
    # the answers made by labelled() repeat its prompt, so that those of "exact" and "near" overlap too
    assert report["answers"] == {"exact": 1, "near": 3, "share_near": 0.75}
    assert report["verdict"].startswith("LEAK: 2 of 4 validation rows (50%)")


def test_repeated_responses_are_reported_in_words_when_they_are_many() -> None:
    rows = [
        Comparison(str(n), (f"question {n} {chr(97 + n) * 30}",), (LONG,), (f"b {n}",), 0) for n in range(4)
    ]
    report: dict[str, Any] = _report(rows, np.array([False, False, True, True]))
    assert report["verdict"] == "no prompt is in both training and validation"
    (warning,) = report["warnings"]
    assert warning.startswith("2 of 2 validation rows (100%) have a response that is in training too")
    assert "data.group_by=[COLUMN]" in warning
    assert answer_warnings(49, 100) == [] and len(answer_warnings(50, 100)) == 1


def test_a_clean_split_says_so() -> None:
    rows = [labelled("1", LONG, 0), labelled("2", "What is the boiling point of water on a mountain?", 1)]
    report = _report(rows, np.array([False, True]))
    assert report["verdict"] == "no prompt is in both training and validation"


def test_extra_rows_that_would_leak_are_left_out() -> None:
    train, validation = (
        [labelled("1", LONG, 0)],
        [labelled("2", "How many legs does a spider have in all?", 1)],
    )
    near = Comparison("e1", ("how many legs does a spider have in all??",), ("x",), ("y",), 0)
    repeated = Comparison("e2", train[0].prompts, train[0].responses_b, train[0].responses_a, 1)
    taken = Comparison("1", ("A new question",), ("x",), ("y",), 2)
    twice = Comparison("e3", ("a  new QUESTION",), ("y",), ("x",), 2)
    free = Comparison("e4", ("A new question",), ("x",), ("z",), 2)
    admitted, reports = admit_extra(
        [Rows("more/extra.csv", "kaggle", [near, repeated, taken]), Rows("b.csv", "kaggle", [twice, free])],
        train,
        validation,
        0.8,
    )
    assert [row.id for row in admitted] == ["extra:1", "e4"]
    assert reports == [
        {
            "source": "more/extra.csv", "rows": 3, "in_validation": 1, "already_in_training": 1,
            "renamed_ids": 1, "used": 1, "soft_labels": 0,
        },
        {
            "source": "b.csv", "rows": 2, "in_validation": 0, "already_in_training": 1, "renamed_ids": 0,
            "used": 1, "soft_labels": 0,
        },
    ]  # fmt: skip


def _out_of_fold_loss(rows: Sequence[Comparison], of_row: NDArray[np.int64]) -> float:
    """Log loss of a cheap model: words of the prompt and of each answer, logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    texts = [
        " ".join(
            f"{side}{word}"
            for side, turns in (("p_", row.prompts), ("a_", row.responses_a), ("b_", row.responses_b))
            for word in " ".join(turns).lower().split()
        )
        for row in rows
    ]
    labels = np.array([row.label for row in rows])
    predicted = np.zeros((len(rows), 3))
    for fold in range(5):
        train, held_out = np.flatnonzero(of_row != fold), np.flatnonzero(of_row == fold)
        words = TfidfVectorizer(token_pattern=r"\S+", sublinear_tf=True, max_features=3000)
        model = LogisticRegression(C=3.0)
        model.fit(words.fit_transform([texts[i] for i in train]), labels[train])
        predicted[held_out] = model.predict_proba(words.transform([texts[i] for i in held_out]))
    return float(log_loss(labels, predicted))


def test_a_leaking_split_of_real_rows_scores_better_and_is_flagged(shared: Path) -> None:
    rows = read_all(shared / "data" / "pandalm_human_993.csv").rows
    groups = find_similar((row.prompt_text for row in rows), 0.8).near
    grouped = make_folds(rows, groups, 5, seed=0).of_row
    leaking = np.random.default_rng(0).permutation(len(rows)) % 5
    assert _out_of_fold_loss(rows, leaking) < _out_of_fold_loss(rows, grouped) - 0.1
    assert _report(rows, grouped == 0)["prompts"]["near"] == 0
    report = _report(rows, leaking == 0)
    assert report["prompts"]["share_near"] > 0.9
    assert str(report["verdict"]).startswith("LEAK")
