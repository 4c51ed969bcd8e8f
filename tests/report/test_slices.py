"""Each slice reports the loss of exactly its rows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.report import slices


def case(n: int = 80, **extra):
    rows = [
        Comparison(
            str(i),
            ("Hello?",) * (1 + i % 2),
            ("same",) * (1 + i % 2),
            ("same" if i % 4 == 0 else "a much longer answer",) * (1 + i % 2),
            label=i % 3,
            model_a=("x", "y")[i % 2],
            model_b=("y", "x")[i % 2] if i < 60 else "z",
        )
        for i in range(n)
    ]
    p = np.tile(np.float32([0.5, 0.25, 0.25]), (n, 1))
    return Predictions(
        [r.id for r in rows], np.arange(n) % 2, p, np.array([r.label for r in rows]), extra
    ), rows


def test_each_slice_has_the_loss_and_accuracy_of_its_rows():
    predictions, rows = case(share_cut=[0.0] * 40 + [0.2] * 20 + [0.5] * 20)
    tables = slices.losses_by_slice(predictions, rows)
    outcome = {part.name: part for part in tables["Outcome"]}
    assert outcome["A preferred"].log_loss == pytest.approx(math.log(2))
    assert outcome["tie"].log_loss == pytest.approx(math.log(4))
    assert outcome["tie"].accuracy == 0 and outcome["A preferred"].accuracy == 1
    assert [(p.name, p.n) for p in tables["Turns"]] == [("1 turn", 40), ("2 turns", 40)]
    assert [(p.name, p.n) for p in tables["Share truncated"]] == [
        ("nothing cut", 40), ("less than half cut", 20), ("half or more cut", 20),
    ]  # fmt: skip
    assert {p.name: p.n for p in tables["Answers"]} == {
        "different answers": 60,
        "identical answers": 20,
    }
    assert {p.name: p.n for p in tables["Longer answer"]} == {
        "within 25% of each other": 20,
        "B is longer": 60,
    }
    assert [p.name for p in tables["Fold"]] == ["fold 0", "fold 1"]
    assert tables["Model pair"][0].name == "x / y" and tables["Model pair"][0].n == 60
    for parts in tables.values():
        for part in parts:
            low, high = part.log_loss_ci
            assert low - 1e-12 <= part.log_loss <= high + 1e-12


def test_length_slices_are_quartiles():
    predictions, rows = case()
    longer = [dataclasses.replace(row, prompts=("x" * i,) * len(row.prompts)) for i, row in enumerate(rows)]
    length = slices.losses_by_slice(predictions, longer)["Length"]
    assert [part.n for part in length] == pytest.approx([20] * 4, abs=1)
    assert length[0].name.endswith("characters")


def test_small_slices_unlabelled_rows_and_single_slices_are_left_out():
    predictions, rows = case(6)
    assert slices.losses_by_slice(predictions, rows) == {}
    unlabelled = Predictions(predictions.ids, predictions.folds, predictions.probabilities, np.full(6, -1))
    assert slices.losses_by_slice(unlabelled, rows) == {}
    predictions, rows = case(80)
    half = np.where(np.arange(80) < 40, predictions.labels, -1)
    known = Predictions(predictions.ids, predictions.folds, predictions.probabilities, half)
    tables = slices.losses_by_slice(known, rows)
    assert sum(part.n for part in tables["Outcome"]) == 40
    assert "Language of the prompt" not in tables and "Model pair" not in tables


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write a poem about the sea", "English"),
        ("Wie kann ich Brot backen, und was ist nicht gut?", "German"),
        ("Quelle est la capitale de la France et pour qui ?", "French"),
        ("¿Cuál es la capital de España y por qué?", "Spanish"),
        ("请给我写一首诗", "Chinese"),
        ("東京の人口は?", "Japanese"),
        ("안녕하세요, 잘 지내세요?", "Korean"),
        ("Напиши стихотворение", "Cyrillic script"),
        ("اكتب قصيدة", "Arabic script"),
        ("1 + 1 = ?", "no words"),
        ("", "no words"),
        ("\ud83d", "no words"),
        ("xyzzy plugh", "other Latin script"),
    ],
)
def test_the_language_is_guessed(text, expected):
    assert slices.guess_language(text) == expected


def test_the_language_column_of_the_source_takes_precedence():
    predictions, rows = case(40)
    stated = [dataclasses.replace(r, extra={"language": ("en", "fr")[i % 2]}) for i, r in enumerate(rows)]
    table = slices.losses_by_slice(predictions, stated)["Language of the prompt"]
    assert [part.name for part in table] == ["en", "fr"]
