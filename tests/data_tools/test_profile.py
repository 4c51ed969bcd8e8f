"""``data check``: every fact is counted right, odd and bad rows are named, the page is safe."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from factories import data_config

from lmsys_unsloth.commands import data_check
from lmsys_unsloth.commands.data_check import parse_arguments
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data_tools.odd_rows import find_odd_rows
from lmsys_unsloth.data_tools.profile import Profile, make_profile
from lmsys_unsloth.data_tools.profile_page import write_profile
from lmsys_unsloth.data_tools.profile_text import facts, findings

COLUMNS = (
    "id", "model_a", "model_b", "prompt", "response_a", "response_b", "winner_model_a", "winner_model_b",
    "winner_tie", "language",
)  # fmt: skip


def write(
    path: Path, rows: int, *, evil: str = "English", prompts: str = "Question {} about topic {}?"
) -> Path:
    """Rows of which A wins every second one, always with the longer response; each third has two turns."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for n in range(rows):
            turns = 2 if n % 3 == 0 else 1
            a, b = ("long " * 20, "short") if n % 2 == 0 else ("short", "long " * 20)
            texts = [[prompts.format(n, n * n)] * turns, [f"{a}{n}"] * turns, [f"{b}{n}"] * turns]
            winner = [1, 0, 0] if n % 2 == 0 else [0, 1, 0]
            writer.writerow([f"r{n}", "gpt", "llama", *map(json.dumps, texts), *winner, evil])
    return path


def profile_of(path: Path, against: Path | None = None) -> Profile:
    config = data_config(path=str(path), name="lmsys", folds=2)
    return make_profile(config, None if against is None else str(against))


def row(id: str = "1", a: str = "yes", b: str = "no", label: int | None = 0, prompt: str = "?") -> Comparison:
    return Comparison(id, (prompt,), (a,), (b,), label=label)


def test_what_is_counted(tmp_path: Path) -> None:
    found = profile_of(write(tmp_path / "train.csv", 30))
    assert (found.layout, found.rows, found.bad) == ("kaggle", 30, [])
    assert found.labels == {"a": 15, "b": 15, "tie": 0}
    assert found.turns == {1: 20, 2: 10} and found.languages == {"English": 30}
    assert [(m.name, m.comparisons, m.won) for m in found.models] == [("gpt", 30, 15), ("llama", 30, 15)]
    assert found.first_wins is not None and (found.first_wins.count, found.first_wins.rows) == (15, 30)
    assert found.longer_wins is not None and found.longer_wins.count == found.longer_wins.rows == 30
    assert found.columns == ["language"] and sum(found.fold["folds"]["sizes"]) == 30
    named = dict(facts(found))
    assert named["rows"] == "30" and named["turns"] == "20 × 1 turn, 10 × 2 turns"
    assert any("Length matters" in finding.text for finding in findings(found))


def test_bad_rows_are_listed_and_the_others_described(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", 20)
    with path.open("a") as file:
        file.write("r0,x,y,[],[],[],1,0,0,\nbroken,x,y,not json,[],[],1,0,0,\n")
    found = profile_of(path)
    assert found.rows == 20 and [bad.id for bad in found.bad] == ["r0", "broken"]
    assert any(f.tone == "bad" and "2 rows can't be used" in f.text for f in findings(found))


def test_a_file_without_labels_is_described_too(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text('id,prompt,response_a,response_b\n1,"[""Hi""]","[""a""]","[""b""]"\n')
    found = profile_of(path)
    assert found.labels["unlabelled"] == 1 and found.fold == {} and "no label" in (found.no_fold or "")
    assert found.first_wins is None and found.longer_wins is None


def test_rows_of_another_file_are_found(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", 20)
    same = write(tmp_path / "same.csv", 10)
    other = write(tmp_path / "other.csv", 10, prompts="{}: an unrelated request, number {}")
    overlap = profile_of(same, against=train).overlap
    assert overlap is not None
    assert (overlap.rows, overlap.same_prompt, overlap.same_comparison) == (20, 10, 10)
    overlap = profile_of(other, against=train).overlap
    assert overlap is not None and (overlap.same_prompt, overlap.same_comparison) == (0, 0)


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (row(prompt="  "), "empty prompt"),
        (row(b=""), "empty response"),
        (row(b=" Yes"), "equal responses"),
        (row(a="x" * 600, b="y"), "very uneven lengths"),
        (row(a="x " * 60_000, b="y " * 60_000), "very long"),
        (row(a="a \ufffd"), "unreadable characters"),
        (row(a="a \x00"), "control characters"),
    ],
)
def test_odd_rows_are_named(odd: Comparison, kind: str) -> None:
    assert [found.kind for found in find_odd_rows([odd])] == [kind]
    assert not list(find_odd_rows([row()]))


def test_repetitions_are_found_in_either_order_of_the_responses() -> None:
    rows = [row("1"), row("2").swapped(), row("3", label=1), row("4", a="other")]
    assert [(found.id, found.kind) for found in find_odd_rows(rows)] == [
        ("2", "repeated"),
        ("3", "repeated with another outcome"),
    ]


def test_the_page_shows_figures_and_escapes_texts(tmp_path: Path) -> None:
    found = profile_of(write(tmp_path / "train.csv", 30, evil="<script>alert(1)</script> $x^$"))
    write_profile(found, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert html.count("<svg") == 5 and "<script" not in html and "&lt;script&gt;" in html
    assert {link.partition("w3.org/")[0] for link in re.findall(r"https?://[^\"\s]+", html)} == {
        "http://www."
    }


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "my (1).csv", 30)
    assert data_check.main(["my (1).csv", "data.folds=3"]) == 0
    printed = capsys.readouterr().out
    assert "profile: my (1)-profile.html" in printed and "30" in printed
    assert (tmp_path / "my (1)-profile.html").is_file()
    assert data_check.main(["missing.csv"]) == 2 and "no such file" in capsys.readouterr().err


def test_arguments_of_the_command() -> None:
    read = parse_arguments(["a.csv", "out=p.html", "against=b.csv", "data.layout=plain"])
    assert (read.path, str(read.out), read.against) == ("a.csv", "p.html", "b.csv")
    assert read.overrides == ["data.layout=plain"]
    with pytest.raises(UserError, match=r"(?s)lora\.r: no such argument.*which file\?.*must end in \.html"):
        parse_arguments(["lora.r=3", "out=p.txt"])
