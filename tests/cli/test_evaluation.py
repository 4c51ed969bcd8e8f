"""Scoring one trained run or an untrained model: rows, orders of the responses, heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained_runs import ROWS, member, read, settings, stored_metrics, train, validation_ids, write

from lmsys_unsloth.cli import evaluation
from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.form.offset import FormOffset, logit_scale
from lmsys_unsloth.evaluate.predictions import read_predictions
from lmsys_unsloth.model.answer_head import AnswerHead

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
    for swap in ("none", "average"):
        evaluation.evaluate_run(member(folder, "fold0", f"eval.swap={swap}"), Run(tmp_path / swap))
    once, twice = (read_predictions(Run(tmp_path / swap).predictions) for swap in ("none", "average"))
    forward, back = (
        np.array([twice.extra[f"p_{view}_{name}"] for name in ("a", "b", "tie")]).T
        for view in ("forward", "swap")
    )
    np.testing.assert_array_equal(forward, once.probabilities)
    np.testing.assert_allclose(twice.probabilities, (forward + back) / 2, atol=1e-6)
    assert stored_metrics(Run(tmp_path / "average"))["swap"]["n"] == len(once)


def test_only_the_least_certain_rows_are_swapped(folder: Path, tmp_path: Path) -> None:
    evaluation.evaluate_run(member(folder, "fold0", "eval.swap=uncertain"), Run(tmp_path))
    predicted = read_predictions(Run(tmp_path).predictions)
    swapped = [value is not None for value in predicted.extra["p_swap_a"]]
    assert sum(swapped) == round(0.25 * len(predicted))
    speed = stored_metrics(Run(tmp_path))["scoring"]
    assert 0 < speed["swap_seconds"] < speed["seconds"] and speed["swap_seconds_saved"] >= 0


def after_each_row(monkeypatch: pytest.MonkeyPatch, note: Callable[[], None]) -> None:
    """Call ``note`` whenever a batch, of one row, was scored."""
    ordinary = AnswerHead.logits

    def noted(head: AnswerHead, decoder: Any, batch: Any) -> Any:
        logits = ordinary(head, decoder, batch)
        note()
        return logits

    monkeypatch.setattr(AnswerHead, "logits", noted)


@pytest.mark.parametrize("extra", [0.0, 0.5, 10.0])
def test_the_rest_of_a_time_budget_is_spent_on_the_least_certain_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: float
) -> None:
    once = read_predictions(Run(folder / "fold0").predictions)
    size, ordinary = len(once), evaluation.predict_rows
    budget = round(size * (1 + extra))
    settings = ("eval.swap=uncertain", f"eval.time_budget={budget}s", "eval.tokens_per_batch=1")
    seconds: list[float] = []
    after_each_row(monkeypatch, lambda: seconds.append(1.0))  # each row takes a second

    def timed(*arguments: Any) -> Any:
        seconds.clear()
        return ordinary(*arguments, clock=lambda: sum(seconds))

    monkeypatch.setattr(evaluation, "predict_rows", timed)
    evaluation.evaluate_run(member(folder, "fold0", *settings), Run(tmp_path))
    predicted = read_predictions(Run(tmp_path).predictions)
    swapped = [i for i, value in enumerate(predicted.extra["p_swap_a"]) if value is not None]
    assert sum(seconds) == size + len(swapped) <= budget
    assert {0.0: 0, 0.5: 1, 10.0: size}[extra] <= len(swapped)
    order = np.argsort(once.probabilities.max(axis=1), kind="stable")
    assert set(swapped) == set(order[: len(swapped)].tolist())
    assert stored_metrics(Run(tmp_path))["scoring"]["swapped_rows"] == len(swapped)
    assert predicted.ids == once.ids


@pytest.mark.parametrize(("swap", "passes"), [("none", 1), ("average", 2), ("uncertain", 2)])
def test_an_interrupted_evaluation_goes_on_and_gives_the_same_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str, passes: int
) -> None:
    settings = [f"eval.swap={swap}", "eval.swap_share=0.5", "eval.tokens_per_batch=1"]
    scored = member(folder, "fold0", *settings)
    done: list[bool] = []
    stop: list[int] = []

    def note() -> None:
        done.append(True)
        if stop == [len(done)]:
            raise KeyboardInterrupt

    after_each_row(monkeypatch, note)
    evaluation.evaluate_run(scored, Run(tmp_path / "whole"))
    total, output = len(done), Run(tmp_path / "interrupted")
    for _ in range(2):  # in each pass; the row at which it stops is scored again
        done.clear()
        stop[:] = [total // 2 - 1] if passes == 2 else [3]
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate_run(scored, output)
        assert output.can_resume() and not output.predictions.exists()
    done.clear()
    stop.clear()
    evaluation.evaluate_run(scored, output)
    before = total - len(done)
    assert before == 2 * ((total // 2 - 1 if passes == 2 else 3) - 1), "nothing is scored twice"
    assert output.predictions.read_bytes() == Run(tmp_path / "whole").predictions.read_bytes()
    assert not output.partial_scores.exists()


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


def test_a_second_stage_counts_the_rows_of_the_first_for_its_offset(folder: Path, tmp_path: Path) -> None:
    first, second = Run(folder / "fold0"), Run(tmp_path / "second")
    train(settings(folder, "fold=0", f"train.init_from={first.path}"), second)
    rows = len(read(first.training_rows))
    scales = [FormOffset.load(run.adapter).logit_scale for run in (first, second)]
    assert scales == pytest.approx([logit_scale(rows), logit_scale(2 * rows)])
