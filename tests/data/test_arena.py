"""The simulated arena: calibrated probabilities, LMSYS's proportions, the same rows for the same seed."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from random import Random

import numpy as np
import pytest
from preferences import read_all

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.arena import answers, conversations, simulate, simulate_row, vocabulary
from lmsys_unsloth.data.arena.answers import Behaviour, write_answer
from lmsys_unsloth.data.arena.questions import Question
from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.simulate import main, parse_arguments


@pytest.fixture(scope="module")
def short() -> list[Comparison]:
    return simulate(6000, seed=0, length="short")


@pytest.fixture(scope="module")
def full() -> list[Comparison]:
    return simulate(3000, seed=0, length="full")


def _probabilities(rows: list[Comparison]) -> np.ndarray:
    return np.array([row.true_probabilities for row in rows])


def test_the_same_seed_gives_the_same_rows_and_more_rows_only_add() -> None:
    rows = simulate(50, seed=3, length="short")
    assert rows == simulate(80, seed=3, length="short")[:50]
    assert rows[20] == simulate_row(20, seed=3, length="short")
    others = simulate(50, seed=4, length="short")
    assert {row.prompts for row in rows} != {row.prompts for row in others}
    assert len({row.id for row in rows + others}) == 100


def test_the_arena_is_the_same_on_every_machine(short: list[Comparison]) -> None:
    """A change of these rows changes every score that was recorded with ``data=simulated``."""
    expected = "28e0783512fed800ac85370554e9f9b20345067f4ba27b5c447ed073f2fa8c5d"
    assert rows_fingerprint(short[:1400]) == expected


def test_labels_follow_the_true_probabilities(short: list[Comparison]) -> None:
    probabilities = _probabilities(short)
    labels = np.eye(3)[[row.label for row in short]]
    assert probabilities.sum(axis=1) == pytest.approx(1)
    error = np.sqrt((probabilities * (1 - probabilities)).sum(axis=0)) / len(short)
    assert (np.abs((labels - probabilities).mean(axis=0)) < 4 * error).all()
    for low, high in ((0, 0.1), (0.1, 0.4), (0.4, 0.7), (0.7, 1)):
        chosen = (probabilities >= low) & (probabilities < high)
        spread = np.sqrt((probabilities * (1 - probabilities))[chosen].sum()) / chosen.sum()
        assert abs((labels - probabilities)[chosen].mean()) < 4 * spread


def test_proportions_are_those_of_lmsys(short: list[Comparison], full: list[Comparison]) -> None:
    for rows in (short, full):
        shares = np.bincount([row.label for row in rows if row.label is not None]) / len(rows)
        assert np.abs(shares - [0.349, 0.342, 0.309]).max() < 0.03
        assert abs(np.mean([len(row.prompts) > 1 for row in rows]) - 0.16) < 0.02
    sizes = [sum(map(len, row.prompts + row.responses_a + row.responses_b)) for row in full]
    assert 2700 < np.mean(sizes) < 3700
    assert np.percentile(sizes, 95) > 8000
    assert len({row.prompts for row in full}) > 0.9 * len(full)


def test_short_rows_are_short_and_learnable(short: list[Comparison]) -> None:
    sizes = [sum(map(len, row.prompts * 2 + row.responses_a + row.responses_b)) for row in short]
    assert 120 < np.mean(sizes) < 220
    probabilities = _probabilities(short)
    best = -np.log(probabilities[np.arange(len(short)), [row.label for row in short]]).mean()
    assert 0.55 < best < 0.70


def test_logistic_regression_learns_from_few_short_rows(short: list[Comparison]) -> None:
    from scipy.sparse import hstack, vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    rows = short[:3000]
    sides = [["\n".join(getattr(row, f"responses_{side}")) for row in rows] for side in "ab"]
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=3, token_pattern=r"\S+", sublinear_tf=True)
    words.fit(sides[0][:800] + sides[1][:800])
    a, b = (words.transform(texts) for texts in sides)
    labels = np.array([row.label for row in rows])
    seen = vstack([hstack([a[:800], b[:800]]), hstack([b[:800], a[:800]])])
    model = LogisticRegression().fit(seen, np.r_[labels[:800], np.array([1, 0, 2])[labels[:800]]])
    loss = log_loss(labels[800:], model.predict_proba(hstack([a[800:], b[800:]])))
    assert loss < 0.97, "the constant prior has 1.098"


def test_the_text_of_an_answer_determines_its_quality() -> None:
    qualities: dict[tuple[str, str], set[float]] = defaultdict(set)
    for seed in range(8000):
        rng = Random(seed)
        question = conversations.opening(rng, conversations.SHORT)
        assert question.right != question.wrong and question.other_form != question.right
        behaviour = answers.draw_behaviour(rng, rng.choice(answers.MODELS), question)
        text = write_answer(rng, question, behaviour)
        qualities[question.prompt, text].add(answers.quality(question, behaviour))
    assert all(len(values) == 1 for values in qualities.values())


def test_traits_show_in_the_answer() -> None:
    rng = Random(0)
    question = Question("What is 2 + 3?", "5", "6", ("2 + 3 is {}.",))
    assert write_answer(rng, question, Behaviour()) == "2 + 3 is 5."
    assert write_answer(rng, question, Behaviour(right=False)) == "2 + 3 is 6."
    assert write_answer(rng, question, Behaviour(style="terse")) == "5"
    assert write_answer(rng, question, Behaviour("refuses")) in vocabulary.REFUSALS
    assert write_answer(rng, question, Behaviour("breaks off"))[-1].isalpha()
    foreign = write_answer(rng, question, Behaviour("wrong language"))
    sentences = [sentence for language in vocabulary.FOREIGN for sentence in language.answers]
    assert any(sentence.format(5) in foreign for sentence in sentences)
    wordy = write_answer(rng, question, Behaviour(style="wordy"))
    assert "2 + 3 is 5." in wordy and len(wordy) > 30
    listing = Question("Name two birds in brackets.", "[crow, owl]", "[elm, oak]", ("{}",), "crow and owl")
    assert write_answer(rng, listing, Behaviour(keeps_form=False)) == "crow and owl"
    spanish = Question("¿2 + 3?", "5", "6", language=vocabulary.FOREIGN[0])
    assert write_answer(rng, spanish, Behaviour("wrong language")).isascii()


def test_the_better_answer_wins_more_often() -> None:
    a, b, tie = answers.outcome_probabilities(0, 0)
    assert a == pytest.approx(b, abs=0.02) and tie == pytest.approx(0.6, abs=0.01)
    assert answers.outcome_probabilities(3, 0)[0] > answers.outcome_probabilities(1, 0)[0] > a


def test_every_essay_topic_has_aspects_of_its_own() -> None:
    assert all(len(aspects) == 6 for aspects in vocabulary.TOPICS.values())
    assert all(len(items) >= 5 for items in vocabulary.CATEGORIES.values())


@pytest.mark.parametrize("length", ["short", "full"])
def test_rows_are_read_back_from_the_written_file(tmp_path: Path, length: str) -> None:
    path = tmp_path / "arena.csv"
    assert main(["rows=60", f"out={path}", f"length={length}", "seed=5"]) == 0
    rows = read_all(path).rows
    assert rows == simulate(60, 5, length)  # type: ignore[arg-type]
    with path.open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    assert json.loads(first["prompt"]) == list(rows[0].prompts)
    assert float(first["p_true_tie"]) == rows[0].true_probabilities[2]  # type: ignore[index]


def test_wrong_arguments_are_all_reported() -> None:
    arguments = parse_arguments(["out=x.csv", "rows=10"])
    assert (arguments.rows, arguments.length, arguments.seed) == (10, "full", 0)
    with pytest.raises(UserError) as caught:
        parse_arguments(["rows=-1", "seed=x", "length=long", "row=3", "out=x.txt"])
    for problem in (
        "rows=-1: must be",
        "seed=x: must be",
        "length=long: must be",
        "row: no such",
        "out=x.txt",
    ):
        assert problem in str(caught.value)
    assert main(["rows=10"]) == 2
