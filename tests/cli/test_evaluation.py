"""Scoring one trained run or an untrained model: rows, orders of the responses, heads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trained_runs import ROWS, member, read, settings, stored_metrics, train, validation_ids, write

from lmsys_unsloth.cli import evaluation
from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate.predictions import read_predictions

pytestmark = pytest.mark.slow


def test_a_run_is_scored_on_its_own_fold_again(folder: Path, tmp_path: Path) -> None:
    evaluation.evaluate_run(member(folder), Run(tmp_path))
    again, first = (
        read_predictions(Run(tmp_path).predictions),
        read_predictions(Run(folder / "fold0").predictions),
    )
    assert list(again.ids) == list(first.ids) == validation_ids(folder)
    np.testing.assert_array_equal(again.probabilities, first.probabilities)


def test_unlabelled_rows_are_all_predicted_and_give_a_submission(folder: Path, tmp_path: Path) -> None:
    winners = ("winner_model_a", "winner_model_b", "winner_tie")
    lines = [{k: v for k, v in line.items() if k not in winners} for line in read(folder / "train.csv")]
    copy, output = write(tmp_path / "test.csv", lines), Run(tmp_path / "eval")
    evaluation.evaluate_run(member(folder, "fold0", f"data.path={copy}"), output)
    submission = read(output.submission)
    assert list(submission[0]) == ["id", *winners]
    assert [line["id"] for line in submission] == [line["id"] for line in lines]
    sums = [sum(float(line[name]) for name in winners) for line in submission]
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    assert stored_metrics(output)["n_unlabelled"] == ROWS
    report = output.report.read_text()
    assert "no labelled rows: predictions only" in report and "least certain" in report


def test_an_untrained_model_is_scored_on_the_fold(folder: Path, tmp_path: Path) -> None:
    evaluation.evaluate_untrained(settings(folder, "fold=1"), Run(tmp_path))
    predicted = read_predictions(Run(tmp_path).predictions)
    assert list(predicted.ids) == validation_ids(folder, 1) and set(predicted.folds.tolist()) == {1}


def test_swapped_responses_are_averaged(folder: Path, tmp_path: Path) -> None:
    once = read_predictions(Run(folder / "fold0").predictions)
    evaluation.evaluate_run(member(folder, "fold0", "eval.swap=average"), Run(tmp_path / "all"))
    twice = read_predictions(Run(tmp_path / "all").predictions)
    forward, back = (
        np.array([twice.extra[f"p_{view}_{name}"] for name in ("a", "b", "tie")]).T
        for view in ("forward", "swap")
    )
    np.testing.assert_array_equal(forward, once.probabilities)
    np.testing.assert_allclose(twice.probabilities, (forward + back) / 2, atol=1e-6)
    assert stored_metrics(Run(tmp_path / "all"))["swap"]["n"] == len(once)


def test_only_the_least_certain_rows_are_swapped(folder: Path, tmp_path: Path) -> None:
    evaluation.evaluate_run(member(folder, "fold0", "eval.swap=uncertain"), Run(tmp_path))
    predicted = read_predictions(Run(tmp_path).predictions)
    swapped = [value is not None for value in predicted.extra["p_swap_a"]]
    assert sum(swapped) == round(0.25 * len(predicted))
    speed = stored_metrics(Run(tmp_path))["scoring"]
    assert 0 < speed["swap_seconds"] < speed["seconds"] and speed["swap_seconds_saved"] >= 0


@pytest.mark.parametrize("kind", ["linear", "lm_trained"])
def test_a_trained_head_is_part_of_the_run(folder: Path, tmp_path: Path, kind: str) -> None:
    run, trained = Run(tmp_path / "RUN"), settings(folder, f"head={kind}")
    train(trained, run)
    assert (run.adapter / "head.safetensors").is_file()
    evaluation.evaluate_run(Member(run, trained), Run(tmp_path / "again"))
    stored, again = (read_predictions(each.predictions) for each in (run, Run(tmp_path / "again")))
    np.testing.assert_array_equal(again.probabilities, stored.probabilities)
    with pytest.raises(UserError, match=f"was trained with head.kind={kind}; set that"):
        evaluation.evaluate_run(Member(run, settings(folder)), Run(tmp_path / "lm"))
    with pytest.raises(UserError, match=f"head.kind = {kind}: an untrained model has no trained head"):
        evaluation.evaluate_untrained(trained, Run(tmp_path / "untrained"))


@pytest.mark.parametrize("both_bad", [None, " Neither"])
def test_davidsons_predictions_do_not_depend_on_the_order(
    folder: Path, tmp_path: Path, new_rows: Path, both_bad: str | None
) -> None:
    overrides = (
        "prompt=v2",
        "head=davidson",
        *([f"prompt.answers.both_bad='{both_bad}'"] if both_bad else []),
    )
    run = Run(tmp_path / "RUN")
    train(settings(folder, *overrides), run)
    lines = read(new_rows)
    pairs = {"response_a": "response_b", "winner_model_a": "winner_model_b"}
    pairs |= {b: a for a, b in pairs.items()}
    exchanged = write(
        tmp_path / "exchanged.csv", [{name: line[pairs.get(name, name)] for name in line} for line in lines]
    )
    found = []
    for name, path in (("as_given", new_rows), ("exchanged", exchanged)):
        scored = Member(run, settings(folder, *overrides, f"data.path={path}"))
        evaluation.evaluate_run(scored, Run(tmp_path / name))
        found.append(read_predictions(Run(tmp_path / name).predictions))
    np.testing.assert_allclose(found[1].probabilities[:, [1, 0, 2]], found[0].probabilities, atol=1e-6)
    np.testing.assert_allclose(found[0].extra["p_swap_a"], found[1].extra["p_forward_b"], atol=1e-6)
    assert np.abs(np.subtract(found[0].extra["p_swap_a"], found[0].extra["p_forward_a"])).max() > 1e-3


def test_rows_of_two_bad_responses_are_trained_as_a_fourth_answer(folder: Path, tmp_path: Path) -> None:
    lines = read(folder / "train.csv")
    for number, line in enumerate(lines):
        winners = {name: line.pop(f"winner_{name}") for name in ("model_a", "model_b", "tie")}
        line["winner"] = "tie (bothbad)" if number % 2 else next(n for n, v in winners.items() if v == "1")
    path = write(tmp_path / "bad.csv", lines)
    run = Run(tmp_path / "RUN")
    train(settings(folder, f"data.path={path}", "prompt=v2", "prompt.answers.both_bad=' Neither'"), run)
    assert len(json.loads(run.samples.read_text())[0]["answer_ids"]) == 4
    np.testing.assert_allclose(read_predictions(run.predictions).probabilities.sum(1), 1, atol=1e-6)
