"""``data convert``: rows of each public layout, made by hand, become rows that a run reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsys_unsloth.commands import data_convert
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.sources import read_source
from lmsys_unsloth.data_tools.conversion import convert
from lmsys_unsloth.data_tools.layouts import FOLDER, known_layouts

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


RATED = {"correctness": 1, "coherence": 1, "complexity": 1, "verbosity": 1}
JUDGED = {"question_id": 81, "model_a": "gpt", "model_b": "llama", "judge": "expert_0"}
LAYOUTS: dict[str, tuple[list[dict[str, Any]], list[tuple[list[str], list[str], list[str], str]]]] = {
    "mt_bench": (
        [
            {**JUDGED, "winner": "model_b", "conversation_a": said("q1", "a1", "q2", "a2"),
             "conversation_b": said("q1", "b1", "q2", "b2"), "turn": 1},
            {**JUDGED, "winner": "tie", "conversation_a": said("q1", "a1", "q2", "a2"),
             "conversation_b": said("q1", "b1", "q2", "b2"), "turn": 2},
        ],
        [(["q1"], ["a1"], ["b1"], "b"), (["q1", "q2"], ["a1", "a2"], ["b1", "b2"], "tie")],
    ),
    "helpsteer2_preference": (
        [
            {"prompt": "q", "response_1": "x", "response_2": "y", "preference_strength": s, "split": "train"}
            for s in (-2, 0, 3)
        ],
        [(["q"], ["x"], ["y"], outcome) for outcome in ("a", "tie", "b")],
    ),
    "helpsteer3_preference": (
        [{"context": said("q1", "old", "q2"), "response1": "x", "response2": "y", "overall_preference": -1}],
        [(["q1", "q2"], ["old", "x"], ["old", "y"], "a")],
    ),
    "helpsteer2": (
        [
            {"prompt": "q", "response": "x", "helpfulness": 2, **RATED},
            {"prompt": "q", "response": "y", "helpfulness": 4, **RATED},
        ],
        [(["q"], ["x"], ["y"], "b")],
    ),
    "ultrafeedback_binarized": (
        [{"prompt": "q", "prompt_id": "p1", "chosen": said("q", "x"), "rejected": said("q", "y"),
          "score_chosen": 8.5, "score_rejected": 8.5}],
        [(["q"], ["x"], ["y"], "tie")],
    ),
    "ultrafeedback_argilla": (
        [{"source": "s", "prompt": "q", "chosen": said("q", "x"), "rejected": said("q", "y"),
          "chosen-rating": 5.0, "rejected-rating": 1.0, "chosen-model": "m", "rejected-model": "n"}],
        [(["q"], ["x"], ["y"], "a")],
    ),
    "reward_bench": (
        [{"id": 7, "prompt": "q", "chosen": "x", "chosen_model": "m", "rejected": "y", "rejected_model": "n",
          "subset": "chat"}],
        [(["q"], ["x"], ["y"], "a")],
    ),
    "safe_rlhf": (
        [{"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 1}],
        [(["q"], ["x"], ["y"], "b")],
    ),
    "shp": (
        [{"history": "q", "human_ref_A": "x", "human_ref_B": "y", "labels": 1, "domain": "d"}],
        [(["q"], ["x"], ["y"], "a")],
    ),
    "chosen_rejected": (
        [{"chosen": "\n\nHuman: q1\n\nAssistant: old\n\nHuman: q2\n\nAssistant: x",
          "rejected": "\n\nHuman: q1\n\nAssistant: old\n\nHuman: q2\n\nAssistant: y"}],
        [(["q1", "q2"], ["old", "x"], ["old", "y"], "a")],
    ),
}  # fmt: skip


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Comparison]:
    found = read_source(str(path), layout="auto", split="", soft_labels=True)
    assert not found.bad and found.layout == "kaggle"
    return list(found.rows)


def in_order(row: Comparison) -> tuple[list[str], list[str], list[str], str]:
    """The row as the layout has it, whether its responses were exchanged or not."""
    row = row.swapped() if row.responses_a[-1] in ("y", "b1", "b2") else row
    return list(row.prompts), list(row.responses_a), list(row.responses_b), ("a", "b", "tie")[row.label or 0]


def test_every_layout_is_tested_and_named_with_its_licence_in_the_documentation() -> None:
    assert LAYOUTS.keys() == known_layouts().keys() == {file.stem for file in FOLDER.glob("*.yaml")}
    documentation = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    for name, layout in known_layouts().items():
        assert f"`{name}`" in documentation and layout.licence.split(" (")[0] in documentation


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_layout_is_recognised_and_converted(name: str, kind: str, tmp_path: Path) -> None:
    rows, expected = LAYOUTS[name]
    path = tmp_path / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        as_jsonl(path, rows)
    for out in (tmp_path / "out.csv", tmp_path / "out.parquet"):
        done = convert(str(path), out)
        assert done.layout == name and not done.bad
        assert [in_order(row) for row in read(out)] == expected


def test_ids_models_and_further_columns_are_kept(tmp_path: Path) -> None:
    convert(str(as_jsonl(tmp_path / "in.jsonl", LAYOUTS["reward_bench"][0])), tmp_path / "out.csv")
    (row,) = read(tmp_path / "out.csv")
    assert row.id == "7" and {row.model_a, row.model_b} == {"m", "n"} and row.extra == {"subset": "chat"}
    convert(str(as_jsonl(tmp_path / "in.jsonl", LAYOUTS["mt_bench"][0])), tmp_path / "out.csv")
    assert [row.id for row in read(tmp_path / "out.csv")] == ["mt_bench-1", "mt_bench-2"]


def test_chosen_responses_are_in_both_places(tmp_path: Path) -> None:
    rows = [{"chosen": f"\n\nHuman: {n}\n\nAssistant: x", "rejected": f"\n\nHuman: {n}\n\nAssistant: y"}
            for n in range(400)]  # fmt: skip
    convert(str(as_jsonl(tmp_path / "in.jsonl", rows)), tmp_path / "out.csv")
    first = sum(row.label == 0 for row in read(tmp_path / "out.csv"))
    assert 150 < first < 250


def test_repeated_ids_become_unique(tmp_path: Path) -> None:
    rows = LAYOUTS["ultrafeedback_binarized"][0] * 3
    convert(str(as_jsonl(tmp_path / "in.jsonl", rows)), tmp_path / "out.csv")
    assert len({row.id for row in read(tmp_path / "out.csv")}) == 3


BROKEN = [
    ("helpsteer2_preference", {"preference_strength": None}, "no signed preference"),
    ("helpsteer2_preference", {"preference_strength": -100}, "no signed preference"),
    ("mt_bench", {"winner": "nobody"}, "must be one of model_a"),
    ("mt_bench", {"turn": 5}, "turn is 5, but there are 2 turns"),
    ("mt_bench", {"conversation_b": said("other", "b1")}, "the user's turns before the two responses differ"),
    ("reward_bench", {"chosen": 3}, "chosen is 3, neither text nor a list of messages"),
    ("helpsteer3_preference", {"context": []}, "must alternate user, assistant and end with it"),
    ("ultrafeedback_binarized", {"score_chosen": "high"}, "must be numbers"),
]


@pytest.mark.parametrize(("name", "change", "reason"), BROKEN)
def test_rows_that_cannot_be_converted_are_named(
    name: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    rows = LAYOUTS[name][0]
    path = as_jsonl(tmp_path / "in.jsonl", [*rows, {**rows[0], **change}])
    with pytest.raises(UserError, match=reason):
        convert(str(path), tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    assert len(convert(str(path), tmp_path / "out.csv", skip=True).bad) == 1
    assert len(read(tmp_path / "out.csv")) == len(rows)


def test_a_rated_response_without_a_second_one_is_named(tmp_path: Path) -> None:
    rows = LAYOUTS["helpsteer2"][0]
    path = as_jsonl(tmp_path / "in.jsonl", [*rows, {**rows[0], "prompt": "alone"}])
    assert convert(str(path), tmp_path / "out.csv", skip=True).bad[0].kinds == ("no second response",)


def test_files_that_need_no_conversion_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    arena = {"id": 1, "prompt": "[]", "response_a": "[]", "response_b": "[]", "winner": "tie"}
    with pytest.raises(UserError, match=r"needs no conversion; train with data=lmsys data.path="):
        convert(str(as_jsonl(tmp_path / "in.jsonl", [arena])), tmp_path / "out.csv")
    with pytest.raises(UserError, match=r"(?s)has the columns question.*layout=FILE.yaml"):
        convert(str(as_jsonl(tmp_path / "in.jsonl", [{"question": 1}])), tmp_path / "out.csv")
    with pytest.raises(UserError, match="column id, prompt"):
        convert(str(as_jsonl(tmp_path / "in.jsonl", [{"q": 1}])), tmp_path / "out.csv", layout="reward_bench")


def test_a_layout_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "title: Mine\nlicence: none\ncolumns: [q, one, two, best]\nprompt: q\nresponse_a: one\n"
        "response_b: two\noutcome: {column: best, values: {'1': a, '2': b}}\n"
    )
    path = as_jsonl(tmp_path / "in.jsonl", [{"q": "Q", "one": [USER, BOT], "two": "y", "best": "2"}])
    with pytest.raises(UserError, match="turns before the two responses differ"):
        convert(str(path), tmp_path / "out.csv", layout=str(tmp_path / "mine.yaml"))
    path = as_jsonl(tmp_path / "in.jsonl", [{"q": "Q", "one": "x", "two": "y", "best": "2"}])
    convert(str(path), tmp_path / "out.csv", layout=str(tmp_path / "mine.yaml"))
    assert read(tmp_path / "out.csv")[0].label == 1
    (tmp_path / "mine.yaml").write_text("title: Mine\nlicence: none\ncolumns: [q]\n")
    with pytest.raises(UserError, match=r"mine.yaml: is no layout"):
        convert(str(path), tmp_path / "out.csv", layout=str(tmp_path / "mine.yaml"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = as_jsonl(tmp_path / "in.jsonl", LAYOUTS["shp"][0])
    assert data_convert.main([f"in={path}", f"out={tmp_path / 'out.csv'}"]) == 0
    assert "1 rows (a 1, b 0, tie 0); layout shp" in capsys.readouterr().out
    assert data_convert.main(["layouts"]) == 0 and "CC-BY-4.0" in capsys.readouterr().out
    assert data_convert.main([f"in={path}", "out=x.txt"]) == 2
    assert "must name a .csv or .parquet file" in capsys.readouterr().err
