"""Every layout gives the same rows; what is missing is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preferences import read_all, read_records, record, write_csv, write_jsonl

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison


def _dialogue(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_kaggle(tmp_path: Path) -> None:
    result = read_records(
        tmp_path,
        record("7", prompt=["Hi", "Bye"], response_a=["Hello!", "Bye!"], response_b=["Yo", "Later"]),
    )
    assert result.layout == "kaggle"
    assert result.rows == [
        Comparison(
            "7", ("Hi", "Bye"), ("Hello!", "Bye!"), ("Yo", "Later"), 0, model_a="alpha", model_b="beta"
        )
    ]


def test_unlabelled_lists(tmp_path: Path) -> None:
    cells = record()
    result = read_records(
        tmp_path, {name: cells[name] for name in ("id", "prompt", "response_a", "response_b")}
    )
    assert result.layout == "kaggle"
    assert result.rows == [Comparison("1", ("Hi",), ("Hello",), ("Yo",))]


def test_wsdm_cup(tmp_path: Path) -> None:
    columns = {
        "prompt": "[draft] Hi",
        "response_a": "Hello",
        "response_b": "",
        "language": "Dutch",
        "winner": "model_b",
    }
    result = read_records(tmp_path, {"id": "x1", "model_a": "m", "model_b": "n", **columns})
    assert result.layout == "plain"
    row = result.rows[0]
    assert (row.prompts, row.responses_a, row.responses_b, row.label) == (
        ("[draft] Hi",),
        ("Hello",),
        ("",),
        1,
    )
    assert row.extra == {"language": "Dutch"}


def test_unlabelled_plain_text(tmp_path: Path) -> None:
    result = read_records(tmp_path, {"id": "1", "prompt": "Hi", "response_a": "Hello", "response_b": "Yo"})
    assert result.layout == "plain"
    assert result.rows == [Comparison("1", ("Hi",), ("Hello",), ("Yo",))]


def test_a_broken_list_among_lists_is_an_error_and_not_plain_text(tmp_path: Path) -> None:
    good = {"prompt": '["Hi"]', "response_a": '["a"]', "response_b": '["b"]'}
    result = read_records(
        tmp_path, {"id": "1", **good}, {"id": "2", **good}, {"id": "3", **good, "prompt": '["Hi'}
    )
    assert [bad.kinds for bad in result.bad] == [("not a JSON list",)]


def test_lists_with_a_winner_column(tmp_path: Path) -> None:
    cells = record(winner="tie")
    result = read_records(tmp_path, {n: c for n, c in cells.items() if not n.startswith("winner_")})
    assert result.layout == "kaggle" and result.rows[0].label == 2


@pytest.mark.parametrize(
    ("winner", "label"), [("model_a", 0), ("model_b", 1), ("tie", 2), ("tie (bothbad)", 2), ("both_bad", 2)]
)
def test_arena_conversations(tmp_path: Path, winner: str, label: int) -> None:
    path = write_jsonl(
        tmp_path / "arena.jsonl",
        [
            {
                "question_id": "q1",
                "model_a": "m",
                "model_b": "n",
                "winner": winner,
                "conversation_a": _dialogue("Hi", "Hello", "And?", "Fine"),
                "conversation_b": _dialogue("Hi", "Yo", "And?", "Good"),
                "language": "English",
                "conv_metadata": {"tokens": 3},
            }
        ],
    )
    result = read_all(path)
    assert result.layout == "conversations"
    expected = Comparison(
        "q1", ("Hi", "And?"), ("Hello", "Fine"), ("Yo", "Good"), label, model_a="m", model_b="n",
        both_bad="bad" in winner,
    )  # fmt: skip
    assert result.rows == [expected]
    assert result.rows[0].extra == {"language": "English"}


def test_conversations_that_differ_in_what_the_user_said(tmp_path: Path) -> None:
    base = {"id": "1", "winner": "tie", "conversation_a": _dialogue("Hi", "Yo")}
    path = write_jsonl(
        tmp_path / "arena.jsonl",
        [
            base | {"conversation_b": _dialogue("Ho", "Yo")},
            base | {"id": "2", "conversation_b": _dialogue("Hi", "Yo", "So", "No")},
        ],
    )
    assert [bad.kinds for bad in read_all(path).bad] == [("different prompts",), ("unequal turn counts",)]


def test_votes_and_probabilities_become_soft_labels(tmp_path: Path) -> None:
    votes = record(votes_a=2, votes_b=1, votes_tie=1)
    assert read_records(tmp_path, votes).rows[0].soft_label == (0.5, 0.25, 0.25)
    assert read_records(tmp_path, votes, soft_labels=False).rows[0].soft_label is None
    probabilities = {**votes, "p_a": 0.1, "p_b": 0.2, "p_tie": 0.7}
    row = read_records(tmp_path, probabilities).rows[0]
    assert row.soft_label == (0.1, 0.2, 0.7)
    assert row.label == 0, "a winner in the file stays the label"


def test_soft_labels_alone_give_the_label(tmp_path: Path) -> None:
    cells = record(p_a=0.1, p_b=0.2, p_tie=0.7)
    result = read_records(tmp_path, {n: c for n, c in cells.items() if not n.startswith("winner_")})
    assert result.rows[0].label == 2


def test_further_columns_are_kept_aside(tmp_path: Path) -> None:
    row = read_records(tmp_path, record(annotator="yo", note="")).rows[0]
    assert row.extra == {"annotator": "yo", "note": ""}
    assert row == read_records(tmp_path, record()).rows[0]


@pytest.mark.parametrize("missing", ["id", "prompt", "response_a", "response_b", "winner_tie"])
def test_a_missing_column_is_named(tmp_path: Path, missing: str) -> None:
    cells = record()
    del cells[missing]
    with pytest.raises(UserError, match=f"column {missing} missing; found") as caught:
        read_records(tmp_path, cells)
    assert "data.layout=" in str(caught.value)


def test_a_layout_can_be_named(tmp_path: Path) -> None:
    cells = record(prompt='["Hi"]', response_a="Hello", response_b="Yo")
    row = read_records(tmp_path, cells, layout="plain").rows[0]
    assert (row.prompts, row.responses_a, row.label) == (('["Hi"]',), ("Hello",), 0)
    with pytest.raises(UserError, match="columns conversation_a, conversation_b missing"):
        read_records(tmp_path, cells, layout="conversations")


def test_all_problems_of_a_row_are_listed(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "rows.csv", [record("", prompt="x", winner_tie=1, votes_a="many", votes_b=0, votes_tie=0)]
    )
    (bad,) = read_all(path).bad
    assert bad.kinds == ("id missing", "not a JSON list", "not probabilities", "two winners")
    assert bad.reason.count(";") >= 3


def test_the_real_files(shared: Path) -> None:
    expected = {"lmsys_train_100": (100, 16), "pandalm_human_993": (993, 0), "tulu_human_eval": (1149, 0)}
    for name, (rows, multi_turn) in expected.items():
        result = read_all(shared / "data" / f"{name}.csv")
        assert result.layout == "kaggle" and not result.bad
        assert len(result.rows) == rows
        assert sum(len(row.prompts) > 1 for row in result.rows) == multi_turn
