"""Bad rows are all accounted for."""

from __future__ import annotations

import csv
from pathlib import Path

from preferences import read_records, record

from lmsys_unsloth.data import sources
from lmsys_unsloth.data.sources import BadRow


def test_order_and_ids_survive(tmp_path: Path) -> None:
    ids = ["9", "zebra", "007", "-1", "10", "a,b", "Ω"]
    assert [row.id for row in read_records(tmp_path, *map(record, ids)).rows] == ids


def test_an_id_used_twice(tmp_path: Path) -> None:
    result = read_records(tmp_path, record("1"), record("2"), record("1"), record("1"))
    assert [row.id for row in result.rows] == ["1", "2"]
    assert [(bad.number, bad.id, bad.reason) for bad in result.bad] == [
        (3, "1", "the id is already used by row 1"),
        (4, "1", "the id is already used by row 1"),
    ]


def test_every_row_is_either_good_or_bad(tmp_path: Path) -> None:
    records = [record(str(n), prompt=["Hi"] if n % 3 else "no list") for n in range(250)]
    result = read_records(tmp_path, *records)
    numbers = [int(row.id) + 1 for row in result.rows] + [bad.number for bad in result.bad]
    assert sorted(numbers) == list(range(1, 251))


def test_the_message_counts_all_and_shows_ten(tmp_path: Path) -> None:
    records = [record("good")]
    records += [record(f"b{n}", winner_model_b=1) for n in range(11)]
    records += [record("c", response_b=["a", "b"]), record("nan")]
    bad = read_records(tmp_path, *records).bad
    message = sources.describe_bad_rows(bad, len(records))
    assert "13 of 14 rows can't be used" in message
    assert (
        "11 × two winners" in message and "1 × unequal turn counts" in message and "1 × id missing" in message
    )
    assert message.count("rows.csv row") == 10
    assert "row 2, id b0: winner_model_a, winner_model_b, winner_tie are [1, 1, 0]; one must be 1" in message
    assert "… and 3 more" in message


def test_bad_rows_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "bad_rows.csv"
    sources.save_bad_rows(path, [BadRow("a.csv", 2, "7", ("x", "y"), 'why, "quoted"\n')])
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"source": "a.csv", "row": "2", "id": "7", "kinds": "x; y", "reason": 'why, "quoted"\n'}
        ]
