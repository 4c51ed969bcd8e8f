"""From configuration to the rows of one fold, and the account of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
import yaml
from factories import CONF
from factories import data_config as config
from preferences import record, write_csv
from pydantic import ValidationError

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.schema import DebugConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data import dataset, duplicates, row_cache, schemas
from lmsys_unsloth.data.arena import simulate


def _file(folder: Path, name: str = "rows.csv", count: int = 60, **changes: Any) -> str:
    """Rows of which each two share a prompt."""
    records = [
        record(
            f"{name[0]}{n}",
            prompt=["".join(Random(f"{name} {n // 2}").choices(ascii_lowercase, k=20))],
            response_a=[f"{n} this is the answer of the first model"],
            winner_model_a=int(n % 3 == 0),
            winner_model_b=int(n % 3 == 1),
            winner_tie=int(n % 3 == 2),
            **changes,
        )
        for n in range(count)
    ]
    return str(write_csv(folder / name, records))


def test_a_fold_of_the_simulated_arena(tmp_path: Path) -> None:
    folds = [dataset.load_fold(config(rows=200), fold, Run(tmp_path / str(fold))) for fold in range(5)]
    rows = simulate(200, 0, "short")
    order = {row.id: n for n, row in enumerate(rows)}
    for fold in folds:
        assert len(fold.train) + len(fold.validation) == 200
        for part in (fold.train, fold.validation):
            places = [order[row.id] for row in part]
            assert places == sorted(places) and [rows[place] for place in places] == part
        assert fold.groups.shape == (len(fold.validation),)
        assert fold.description["leak"]["prompts"] == {"exact": 0, "near": 0, "share_near": 0.0}
    assert sorted(order[row.id] for fold in folds for row in fold.validation) == list(range(200))


def test_the_description_is_what_the_run_keeps(tmp_path: Path) -> None:
    fold = dataset.load_fold(config(path=_file(tmp_path)), 2, Run(tmp_path / "run"))
    saved = json.loads((tmp_path / "run" / "data.json").read_text())
    assert saved == json.loads(json.dumps(fold.description))
    assert saved["source"]["rows"] == 60 and saved["source"]["labels"] == {"a": 20, "b": 20, "tie": 20}
    assert saved["folds"]["groups"] == 30 and saved["folds"]["largest_group"] == 2
    assert sum(saved["folds"]["sizes"]) == 60
    with (tmp_path / "run" / "folds.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == [f"r{n}" for n in range(60)]
    assert [line["id"] for line in lines if line["fold"] == "2"] == [row.id for row in fold.validation]
    assert not (tmp_path / "run" / "bad_rows.csv").exists()


def test_the_fold_must_exist() -> None:
    with pytest.raises(UserError, match=r"fold = 9: data\.folds = 5, so the folds are 0 to 4"):
        dataset.load_fold(config(), 9)


def test_bad_rows_stop_or_are_skipped_and_listed(tmp_path: Path) -> None:
    good = [record(str(n), prompt=[f"{n} question {n * 7}" * 3]) for n in range(20)]
    bad = [record("x", prompt="no list"), record("y", winner_tie=1), record("0")]
    path = str(write_csv(tmp_path / "rows.csv", [*good[:10], *bad, *good[10:]]))
    with pytest.raises(UserError) as caught:
        dataset.load_fold(config(path=path), 0, Run(tmp_path))
    for part in (
        "3 of 23 rows",
        "1 × not a JSON list",
        "1 × two winners",
        "row 13, id 0",
        "data.bad_rows=skip",
    ):
        assert part in str(caught.value)
    fold = dataset.load_fold(config(path=path, bad_rows="skip"), 0, Run(tmp_path))
    assert len(fold.train) + len(fold.validation) == 20
    assert fold.description["bad_rows"] == {
        "policy": "skip",
        "rows": 3,
        "by_reason": {"not a JSON list": 1, "two winners": 1, "id used twice": 1},
    }
    with (tmp_path / "bad_rows.csv").open(newline="") as file:
        assert [(line["row"], line["id"]) for line in csv.DictReader(file)] == [
            ("11", "x"),
            ("12", "y"),
            ("13", "0"),
        ]


def test_nothing_left_after_skipping(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "rows.csv", [record("1", prompt="no list")]))
    with pytest.raises(UserError, match="No usable row is left"):
        dataset.load_rows(config(path=path, bad_rows="skip"))


def test_unlabelled_rows_can_be_predicted_but_not_trained_on(tmp_path: Path) -> None:
    cells = {name: cell for name, cell in record().items() if not name.startswith("winner_")}
    path = str(write_csv(tmp_path / "test.csv", [cells | {"id": str(n)} for n in (3, 1, 2)]))
    assert [(row.id, row.label) for row in dataset.load_rows(config(path=path))] == [
        ("3", None),
        ("1", None),
        ("2", None),
    ]
    with pytest.raises(UserError, match="3 of 3 rows have no label"):
        dataset.load_fold(config(path=path), 0)


def test_extra_rows_join_training_only_and_leave_the_folds_alone(tmp_path: Path) -> None:
    path, extra = _file(tmp_path), _file(tmp_path, "more.csv", 20)
    plain = dataset.load_fold(config(path=path), 1)
    fold = dataset.load_fold(config(path=path, extra=[extra, path]), 1)
    assert fold.validation == plain.validation
    assert fold.train[: len(plain.train)] == plain.train
    assert [row.id for row in fold.train[len(plain.train) :]] == [f"m{n}" for n in range(20)]
    own, repeated = fold.description["extra"]
    assert (own["used"], own["in_validation"]) == (20, 0)
    assert (repeated["used"], repeated["in_validation"]) == (0, len(fold.validation))
    assert repeated["already_in_training"] == len(plain.train)
    assert fold.description["leak"]["prompts"]["near"] == 0


def test_a_group_larger_than_a_fold_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [record(str(n), prompt=["the same" if n < 12 else f"{n * 77_777} other"]) for n in range(30)]
    dataset.load_fold(config(path=str(write_csv(tmp_path / "rows.csv", records))), 0)
    assert "12 of 30 rows form one group" in caplog.text


def test_saved_folds_are_used_again(tmp_path: Path) -> None:
    path = _file(tmp_path)
    first = dataset.load_fold(config(path=path), 3, Run(tmp_path / "run"))
    again = dataset.load_fold(
        config(path=path, fold_seed=7, fold_file=str(tmp_path / "run" / "folds.csv")), 3
    )
    assert again.validation == first.validation
    assert again.description["folds"]["fingerprint"] == first.description["folds"]["fingerprint"]
    assert dataset.load_fold(config(path=path, fold_seed=7), 3).validation != first.validation


def test_saved_folds_that_leak_are_flagged(tmp_path: Path) -> None:
    path = _file(tmp_path)
    leaking = tmp_path / "folds.csv"
    leaking.write_text("id,fold\n" + "".join(f"r{n},{n % 5}\n" for n in range(60)))
    fold = dataset.load_fold(config(path=path, fold_file=str(leaking)), 0)
    assert fold.description["leak"]["verdict"].startswith("LEAK: 12 of 12 validation rows (100%)")


def test_an_empty_fold(tmp_path: Path) -> None:
    path, folds = _file(tmp_path, count=10), tmp_path / "folds.csv"
    folds.write_text("id,fold\n" + "".join(f"r{n},{n % 2}\n" for n in range(10)))
    with pytest.raises(UserError, match="fold = 4: no row is in this fold"):
        dataset.load_fold(config(path=path, fold_file=str(folds)), 4)
    folds.write_text("id,fold\n" + "".join(f"r{n},4\n" for n in range(10)))
    with pytest.raises(UserError, match="none is left to train on"):
        dataset.load_fold(config(path=path, fold_file=str(folds)), 4)


@pytest.mark.parametrize("name", ["lmsys_train_100", "pandalm_human_993", "tulu_human_eval"])
def test_real_rows(shared: Path, name: str) -> None:
    fold = dataset.load_fold(config(path=str(shared / "data" / f"{name}.csv")), 0)
    assert fold.description["leak"]["verdict"] == "no prompt is in both training and validation"
    shares = [np.bincount([row.label for row in part]) / len(part) for part in (fold.train, fold.validation)]  # type: ignore[arg-type]
    assert np.abs(shares[0] - shares[1]).max() < 0.1


def test_the_cache_remembers_ties_between_bad_responses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMSYS_UNSLOTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(row_cache, "LEAST_BYTES", 0)
    said = {
        name: [{"role": role, "content": "Hi"} for role in ("user", "assistant")]
        for name in schemas.CONVERSATIONS
    }
    lines = [{"id": str(n), "winner": winner, **said} for n, winner in enumerate(("tie", "tie (bothbad)"))]
    (tmp_path / "arena.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for _ in range(2):
        rows = dataset.load_rows(config(path=str(tmp_path / "arena.jsonl")))
        assert [row.both_bad for row in rows] == [False, True]
        monkeypatch.setattr(row_cache.sources, "open_rows", None)


def test_bad_rows_are_found_again_where_the_rows_are_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMSYS_UNSLOTH_CACHE", str(tmp_path / "cache"))
    path = _file(tmp_path)
    with Path(path).open("a") as file:
        file.write("too,few,cells\n")
    monkeypatch.setattr(row_cache, "LEAST_BYTES", 0)
    monkeypatch.setattr(row_cache, "IN_MEMORY_BYTES", 0)
    for _ in range(2):
        with pytest.raises(UserError, match="1 of 61 rows can't be used"):
            dataset.load_rows(config(path=path))
        assert len(dataset.load_rows(config(path=path, bad_rows="skip"))) == 60


@pytest.mark.parametrize("in_memory", [0, 2**29])
def test_the_cache_gives_the_same_and_never_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(row_cache, "IN_MEMORY_BYTES", in_memory)
    monkeypatch.setenv("LMSYS_UNSLOTH_CACHE", str(tmp_path / "cache"))
    path = _file(tmp_path, votes_a=1, votes_b=1, votes_tie=2, note="kept")
    uncached = dataset.load_fold(config(path=path), 0)
    monkeypatch.setattr(dataset, "LEAST_ROWS", 0)
    monkeypatch.setattr(row_cache, "LEAST_BYTES", 0)
    first = dataset.load_fold(config(path=path), 0)
    with monkeypatch.context() as without:
        without.setattr(duplicates, "find_similar", None)
        without.setattr(row_cache.sources, "open_rows", None)
        cached = dataset.load_fold(config(path=path), 0)
        other_fold = dataset.load_fold(config(path=path), 1)
    for fold in (first, cached):
        assert (list(fold.train), list(fold.validation)) == (uncached.train, uncached.validation)
        assert fold.description == uncached.description
        assert np.array_equal(fold.groups, uncached.groups)
    assert cached.train[0].extra == {"note": "kept"}
    assert other_fold.validation != cached.validation
    assert dataset.load_fold(config(path=path, soft_labels=False), 0).train[0].soft_label is None
    content = Path(path).read_text()
    Path(path).write_text(content.replace("0 this is the answer", "0 that is the answer", 1))
    changed = dataset.load_fold(config(path=path), 0)
    assert changed.description["fingerprint"] != first.description["fingerprint"]
    answers = [row.responses_a[0] for row in (*changed.train, *changed.validation)]
    assert "0 that is the answer of the first model" in answers


def test_a_part_of_a_fold_for_trying_out() -> None:
    fold = dataset.load_fold(config(rows=100), 0)
    settings = {"name": None, "preview": False, "parity": False, "evaluate_on_train": False}
    debug = DebugConfig(train_rows=10, validation_rows=5, **settings)  # type: ignore[arg-type]
    part = dataset.limit_rows(fold, debug, seed=0)
    assert (len(part.train), len(part.validation), len(part.groups)) == (10, 5, 5)
    assert all(row in fold.validation for row in part.validation)


def test_settings() -> None:
    shipped = yaml.safe_load((CONF / "data" / "lmsys.yaml").read_text())
    assert shipped.keys() == {"defaults", "name"}
    assert config(name="lmsys", path="x.csv").path == "x.csv"
    for wrong in (
        {"folds": 1},
        {"near_duplicate": 0.0},
        {"swap": "always"},
        {"rows": "many"},
        {"extra": "x.csv"},
    ):
        with pytest.raises(ValidationError):
            config(**wrong)


def _with_columns(folder: Path, **columns: list[Any]) -> str:
    """Thirty rows with different prompts and further columns."""
    records = [
        record(
            str(n), prompt=[f"question {n} about {'abcdefghijklmnopqrstuvwxyz1234'[n] * 12}"],
            winner_model_a=int(n % 3 == 0), winner_model_b=int(n % 3 == 1), winner_tie=int(n % 3 == 2),
            **{name: values[n] for name, values in columns.items()},
        )
        for n in range(30)
    ]  # fmt: skip
    return str(write_csv(folder / "rows.csv", records))


def _folds(path: str, folder: Path, **changes: Any) -> list[int]:
    run = Run(folder / "run")
    dataset.load_fold(config(path=path, folds=3, **changes), 0, run)
    with run.folds.open(newline="") as file:
        return [int(line["fold"]) for line in csv.DictReader(file)]


def _stay_together(values: list[Any], folds: list[int]) -> bool:
    pairs = {(value, fold) for value, fold in zip(values, folds, strict=True) if value not in (None, "")}
    return len(pairs) == len({value for value, _ in pairs})


def test_rows_of_one_session_share_a_fold(tmp_path: Path) -> None:
    sessions = [f"s{n % 10}" for n in range(30)]
    path = _with_columns(tmp_path, evaluation_session_id=sessions)
    assert _stay_together(sessions, _folds(path, tmp_path))
    assert json.loads((tmp_path / "run" / "data.json").read_text())["folds"]["grouped_by"] == [
        "prompt",
        "evaluation_session_id",
    ]


def test_rows_that_share_a_named_column_share_a_fold(tmp_path: Path) -> None:
    topics, authors = [f"t{n % 7}" for n in range(30)], [f"a{n}" if n % 2 else "" for n in range(30)]
    path = _with_columns(tmp_path, topic=topics, author=authors)
    assert not _stay_together(topics, _folds(path, tmp_path))
    assert _stay_together(topics, _folds(path, tmp_path, group_by=["topic", "author"]))


def test_saved_folds_that_split_a_group_are_reported(tmp_path: Path) -> None:
    path = _with_columns(tmp_path, topic=[f"t{n % 10}" for n in range(30)])
    _folds(path, tmp_path)
    saved = str(tmp_path / "run" / "folds.csv")
    reports = [
        dataset.load_fold(config(path=path, folds=3, fold_file=saved, group_by=columns), 0).description[
            "leak"
        ]
        for columns in ([], ["topic"])
    ]
    assert [report["verdict"] for report in reports] == ["no prompt is in both training and validation"] * 2
    assert reports[0]["warnings"] == []
    (warning,) = reports[1]["warnings"]
    assert "share a value that rows are grouped by with training rows" in warning


def test_columns_join_groups_along_chains(tmp_path: Path) -> None:
    odd, thirds = [n // 2 for n in range(30)], [(n + 1) // 2 for n in range(30)]
    path = _with_columns(tmp_path, odd=odd, thirds=thirds)
    with pytest.raises(UserError, match=r"form only 1 groups by prompt, odd, thirds"):
        dataset.load_fold(config(path=path, folds=3, group_by=["odd", "thirds"]), 0)


def test_an_unknown_column_is_named_with_those_that_exist(tmp_path: Path) -> None:
    path = _with_columns(tmp_path, topic=["t"] * 30)
    with pytest.raises(UserError, match=r"data.group_by = \[subject\]: no row has the column .*has topic"):
        dataset.load_fold(config(path=path, group_by=["subject"]), 0)


def test_extra_rows_of_a_validation_session_are_left_out(tmp_path: Path) -> None:
    path = _with_columns(tmp_path, topic=[f"t{n % 10}" for n in range(30)])
    (tmp_path / "more").mkdir()
    more = write_csv(
        tmp_path / "more" / "extra.csv",
        [record(f"e{n}", prompt=[f"new {n} {'zyxwvutsrq'[n] * 20}"], topic=f"t{n}") for n in range(10)],
    )
    fold = dataset.load_fold(config(path=path, folds=3, group_by=["topic"], extra=[str(more)]), 0)
    topics = {row.extra["topic"] for row in fold.validation}
    assert fold.description["extra"][0]["in_validation"] == len(topics) > 0
    assert not topics & {row.extra["topic"] for row in fold.train}
