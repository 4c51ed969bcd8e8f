"""Rows that were trained on are recognised by content."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.trained_rows import load_trained_rows, save_trained_rows

ROW = Comparison(
    "7", ("What is a keel?", "And a mast?"), ("A fin.", "A pole."), ("A part.", "Wood."), label=0
)
OTHER = Comparison("8", ("What is a sail?",), ("Cloth.",), ("A sheet.",), label=1)


@pytest.mark.parametrize(
    ("row", "trained"),
    [
        (ROW, True),
        (dataclasses.replace(ROW, id="new"), True),
        (ROW.swapped(), True),
        (dataclasses.replace(ROW, id="new", label=None), True),
        (dataclasses.replace(ROW, id="new", prompts=("what  IS a keel?", "And a mast? ")), True),
        (dataclasses.replace(ROW, responses_a=("A fin.", "A corrected pole.")), True),
        (dataclasses.replace(ROW, id="new", responses_a=("A fin.", "Another pole.")), False),
        (dataclasses.replace(OTHER, id="7"), False),
        (OTHER, False),
    ],
    ids=[
        "same", "new id", "swapped", "unlabelled", "white space and case", "same id and prompt",
        "other response under a new id", "other row under the same id", "other row",
    ],
)  # fmt: skip
def test_a_row_is_recognised_by_content(row: Comparison, trained: bool, tmp_path: Path) -> None:
    save_trained_rows(tmp_path / "rows.csv", [ROW])
    assert (row in load_trained_rows([tmp_path / "rows.csv"])) is trained


def test_rows_of_several_runs_are_joined(tmp_path: Path) -> None:
    save_trained_rows(tmp_path / "1.csv", [ROW])
    save_trained_rows(tmp_path / "2.csv", [OTHER])
    both = load_trained_rows([tmp_path / "1.csv", tmp_path / "2.csv"])
    assert ROW in both and OTHER in both


@pytest.mark.parametrize("content", [None, "", "id,fold\n7,0\n", "id,prompt_sha256,content_sha256\n7,x\n"])
def test_a_missing_or_damaged_file_is_not_taken_for_no_rows(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(UserError, match=r"(?s)can't be recognised.*eval.trained_rows=include"):
        load_trained_rows([tmp_path / "rows.csv"])
