"""The preview tells what a run will train on and score, and shows one prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import encoder

from lmsys_unsloth.cli.preview import EXCERPT_CHARACTERS, SAMPLES, print_preview, write_samples
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting.prepared import Prepared

CLEAN: dict[str, Any] = {
    "leak": {"verdict": "no validation row leaks", "warnings": []},
    "bad_rows": {"rows": 0, "by_reason": {}},
    "extra": [],
}


def prepared(count: int, words: int = 1) -> Prepared:
    made = encoder("small-llama3", "v2", 900)
    rows = [Comparison(str(i), ("Hi " * words,), ("Hello",), ("Yo",), label=i % 3) for i in range(count)]
    encoded = made.encode(rows)
    return Prepared(made, encoded[:-3], np.zeros(count - 3, int), None, train=encoded[-3:])


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_the_rows_of_both_parts_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    print_preview(CLEAN, prepared(5), whole=False)
    shown = printed(capsys)
    assert "rows 3 2" in shown
    assert "share of labels a / b / tie 0.333 / 0.333 / 0.333 0.500 / 0.500 / 0.000" in shown
    assert "truncated rows 0.0% 0.0%" in shown and "text cut from truncated rows - -" in shown
    assert "leak report: no validation row leaks" in shown


def test_what_was_left_out_is_counted_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"source": "b.csv", "rows": 9, "used": 6, "in_validation": 2, "already_in_training": 1}
    description = {
        "leak": {"verdict": "a verdict", "warnings": ["a warning"]},
        "bad_rows": {"rows": 2, "by_reason": {"no turns": 2}},
        "extra": [extra],
    }
    print_preview(description, prepared(5), whole=False)
    shown = printed(capsys)
    assert "leak report: a verdict; a warning" in shown
    assert "bad rows left out: 2 (2 × no turns), listed in bad_rows.csv" in shown
    assert (
        "extra data b.csv: 6 of 9 rows used; left out: 2 with a prompt of a validation row, 1 that" in shown
    )


@pytest.mark.parametrize("whole", [False, True])
def test_a_long_prompt_is_printed_whole_only_on_request(
    capsys: pytest.CaptureFixture[str], whole: bool
) -> None:
    rows = prepared(5, words=2000)
    print_preview(CLEAN, rows, whole=whole)
    shown = printed(capsys)
    assert "truncated rows 100.0% 100.0%" in shown
    assert "⟦ A| B| Tie⟧" in shown
    left_out = len(rows.encoder.preview(rows.scored[0])) - 2 * EXCERPT_CHARACTERS
    assert (f"… {left_out:,} characters left out …" in shown) == (not whole)


def test_samples_are_the_first_rows_as_tokenised(tmp_path: Path) -> None:
    rows = prepared(20)
    write_samples(Run(tmp_path), rows)
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert [sample["id"] for sample in samples] == [str(i) for i in range(SAMPLES)]
    assert samples[1]["text"] == rows.scored[1].text
    assert samples[1]["input_ids"] == rows.scored[1].input_ids.tolist()
    assert samples[1]["answer_ids"] == [list(ids) for ids in rows.encoder.answer_ids]
