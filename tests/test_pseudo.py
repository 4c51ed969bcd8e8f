"""Predictions of unlabelled rows become a file of extra training rows."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from factories import config
from preferences import read_all, record, write_csv

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.comparison import Comparison, label_array, rows_fingerprint
from lmsys_unsloth.data.dataset import load_fold
from lmsys_unsloth.evaluate.predictions import Predictions, write_predictions
from lmsys_unsloth.pseudo import main

CONFIDENT = ((0.8, 0.1, 0.1), (0.4, 0.3, 0.3), (0.1, 0.7, 0.2), (0.3, 0.1, 0.6))


def scored(folder: Path, *, labelled: bool = False) -> Run:
    """Output of ``eval.py`` for a file of four rows."""
    records = [
        record(f"u{k}", prompt=[f"{'klmnopq'[k] * 9} question", 'a "quoted", one\nmore'],
               response_a=["yes", "no"], response_b=["", "null"], language=["fr", "de"][k % 2])
        for k in range(4)
    ]  # fmt: skip
    if not labelled:
        records = [{n: c for n, c in row.items() if not n.startswith("winner")} for row in records]
    rows = read_all(write_csv(folder / "unlabelled.csv", records)).rows
    return _output(folder / "scored", folder / "unlabelled.csv", rows)


def _output(path: Path, file: Path, rows: Sequence[Comparison]) -> Run:
    run = Run(path)
    settings = config("data=lmsys", f"data.path={file}")
    p = np.array(CONFIDENT, dtype=np.float32)
    write_predictions(
        run.predictions, Predictions([row.id for row in rows], np.full(4, -1), p, label_array(rows))
    )
    run.config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    write_json(run.data, {"fingerprint": rows_fingerprint(rows)})
    return run


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_file_is_read_back_as_the_same_rows_with_soft_labels(tmp_path: Path, ending: str) -> None:
    run, out = scored(tmp_path), tmp_path / f"pseudo.{ending}"
    assert main([f"run={run.path}", f"out={out}"]) == 0
    before = read_all(tmp_path / "unlabelled.csv").rows
    after = read_all(out).rows
    assert [dataclasses.replace(row, label=None, soft_label=None) for row in after] == before
    assert [row.extra for row in after] == [row.extra for row in before]
    assert [row.label for row in after] == [0, 0, 1, 2]
    np.testing.assert_allclose([row.soft_label for row in after], CONFIDENT, atol=1e-6)  # type: ignore[arg-type]


def test_less_certain_rows_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = scored(tmp_path), tmp_path / "pseudo.csv"
    assert main([f"run={run.path}", f"out={out}", "min_confidence=0.6"]) == 0
    assert [row.id for row in read_all(out).rows] == ["u0", "u2", "u3"]
    assert "3 rows (most likely outcome: 1 a, 1 b, 1 tie)" in (said := capsys.readouterr().out)
    assert "left out: 1 less certain rows, 0 rows that have a label" in said
    assert main([f"run={run.path}", f"out={out}", "max_rows=2"]) == 0
    assert [row.id for row in read_all(out).rows] == ["u0", "u2"]


def test_training_uses_the_file_and_drops_what_it_has_already(tmp_path: Path) -> None:
    run, out = scored(tmp_path), tmp_path / "pseudo.csv"
    assert main([f"run={run.path}", f"out={out}"]) == 0
    made = load_fold(config("data.rows=30", "data.folds=3", f"data.extra=[{out}]").data, 0)
    assert made.description["extra"][0]["used"] == 4
    assert [row.id for row in made.train if row.soft_label] == ["u0", "u1", "u2", "u3"]
    own = [dict(line) for line in csv.DictReader(out.open(newline=""))]
    train = [
        {**line, **dict.fromkeys(("winner_model_a", "winner_model_b", "winner_tie"), 0)} | winner
        for line, winner in zip(own[:2], ({"winner_model_a": 1}, {"winner_tie": 1}), strict=True)
    ]
    others = [record(str(k), prompt=[f"{'abcdefghijkl'[k] * 8} other {k * 7919}"]) for k in range(12)]
    table = pd.concat([pd.DataFrame(train), pd.DataFrame(others)])
    table.drop(columns=["p_a", "p_b", "p_tie"]).to_csv(tmp_path / "train.csv", index=False)
    again = load_fold(
        config(
            "data=lmsys", f"data.path={tmp_path / 'train.csv'}", f"data.extra=[{out}]", "data.folds=2"
        ).data,
        0,
    )
    report = again.description["extra"][0]
    assert (report["used"], report["in_validation"] + report["already_in_training"]) == (2, 2)


def test_labelled_rows_are_not_pseudo_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = scored(tmp_path, labelled=True)
    assert main([f"run={run.path}", f"out={tmp_path / 'pseudo.csv'}"]) == 2
    assert "none of its 4 rows is unlabelled" in (said := capsys.readouterr().err)
    assert f"data.soft_labels={run.path}" in said and not (tmp_path / "pseudo.csv").exists()


def test_a_file_that_has_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = scored(tmp_path), tmp_path / "unlabelled.csv"
    file.write_text(file.read_text().replace("kkk", "jjj"))
    assert main([f"run={run.path}", f"out={tmp_path / 'pseudo.csv'}"]) == 2
    assert "has changed since" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["out=p.csv"], "run=: must name a directory that eval.py made"),
        (["run=x", "out=p.txt"], "out=p.txt: must name a .csv or .parquet file"),
        (["run=x", "out=p.csv", "min_confidence=1.5"], "min_confidence=1.5: must be a number from 0 to 1"),
        (["run=x", "out=p.csv", "rows=2"], "rows: no such argument"),
        (["run=x", "out=p.csv"], "x: no such run directory"),
    ],
)
def test_wrong_arguments_are_named(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert problem in capsys.readouterr().err


def test_a_confidence_that_no_row_reaches_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scored(tmp_path)
    assert main([f"run={run.path}", f"out={tmp_path / 'p.csv'}", "min_confidence=0.9"]) == 2
    assert "the highest confidence of 4 rows is 0.800" in capsys.readouterr().err
