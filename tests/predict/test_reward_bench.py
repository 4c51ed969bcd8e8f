"""Benchmarks of chosen and rejected responses, from every kind of file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.predict.conversations import to_comparisons
from lmsys_unsloth.predict.reward_bench import score_reward_bench


def longer_is_better(rows: Iterable[Mapping[str, Any]]) -> NDArray[np.float32]:
    """Prefers the longer response; a position bias that is stronger than small differences."""
    gaps = [len(row.responses_a[-1]) - len(row.responses_b[-1]) + 0.5 for row in to_comparisons(rows)]
    first = 1 / (1 + np.exp(-np.array(gaps)))
    return np.stack([first, 1 - first, 0 * first], axis=1).astype(np.float32)


PAIRS = [
    {"prompt": "Hi", "chosen": "long answer", "rejected": "short", "subset": "chat"},
    {"prompt": "Hi", "chosen": "short", "rejected": "long answer", "subset": "chat"},
    {"prompt": "Hi", "chosen": "one", "rejected": "two", "subset": "chat"},
    {"prompt": "Hi", "chosen": "long answer", "rejected": "short", "subset": "code"},
]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_accuracy_is_that_of_both_orders_overall_and_by_subset(tmp_path: Path, kind: str) -> None:
    file, table = tmp_path / f"pairs.{kind}", pd.DataFrame(PAIRS)
    if kind == "csv":
        table.to_csv(file, index=False)
    elif kind == "parquet":
        table.to_parquet(file)
    else:
        table.to_json(file, orient="records", lines=True)
    found = score_reward_bench(str(file), longer_is_better, both_orders=True, split="train")
    assert (found.accuracy, found.pairs) == (2.5 / 4, 4)  # the third pair is equal without the bias
    assert {name: part.accuracy for name, part in found.subsets.items()} == {"chat": 0.5, "code": 1.0}
    assert found.mean_of_subsets == 0.75 and found.accuracy_ci is not None
    once = score_reward_bench(str(file), longer_is_better, both_orders=False, split="train")
    assert once.accuracy == 3 / 4


def test_whole_conversations_are_split_into_prompt_and_response(tmp_path: Path) -> None:
    def conversation(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]

    pair = {"chosen": conversation("long answer"), "rejected": conversation("short")}
    pd.DataFrame([pair]).to_parquet(tmp_path / "pairs.parquet")
    as_text = {name: json.dumps(value) for name, value in pair.items()}
    pd.DataFrame([as_text]).to_csv(tmp_path / "pairs.csv", index=False)
    for name in ("pairs.parquet", "pairs.csv"):
        found = score_reward_bench(str(tmp_path / name), longer_is_better, both_orders=True, split="train")
        assert found.accuracy == 1.0 and not found.subsets and found.mean_of_subsets is None


def test_a_file_without_pairs_is_refused_with_its_rows(tmp_path: Path) -> None:
    pd.DataFrame([{"prompt": "Hi", "chosen": "a"}]).to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(UserError, match=r"(?s)pairs.csv: not a file of pairs.*row 1: lacks rejected"):
        score_reward_bench(str(tmp_path / "pairs.csv"), longer_is_better, both_orders=True, split="train")
