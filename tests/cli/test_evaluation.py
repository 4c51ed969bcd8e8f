"""Scoring trained runs: what they were trained on is left out, and what can be shared is done once."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import config
from tiny import save_tiny_llama

from lmsys_unsloth.cli import evaluation
from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.cli.prepare import prepare_training
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate.calibration import apply_temperature
from lmsys_unsloth.evaluate.predictions import read_predictions, unadjusted
from lmsys_unsloth.evaluate.scoring import predict_rows
from lmsys_unsloth.model import loading
from lmsys_unsloth.prompting.encoding import RowEncoder
from lmsys_unsloth.report.results import report_scoring
from lmsys_unsloth.report.tracking import NoTracker
from lmsys_unsloth.simulate import main as simulate

pytestmark = pytest.mark.slow

ROWS, FOLDS = 30, 3
Lines = list[dict[str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, ``train.csv`` with 30 rows, and one trained run for each of three folds."""
    path = tmp_path_factory.mktemp("evaluation")
    save_tiny_llama(path / "model")
    assert simulate([f"rows={ROWS}", "length=short", f"out={path / 'train.csv'}"]) == 0
    for fold in range(FOLDS):
        train(settings(path, f"fold={fold}"), Run(path / f"fold{fold}"))
    return path


def settings(path: Path, *overrides: str) -> Config:
    return config(
        "data=lmsys", f"data.path={path / 'train.csv'}", f"data.folds={FOLDS}", "train.max_steps=2",
        "train.learning_rate=0.02", f"model.path={path / 'model'}", "prompt.max_tokens=256",
        "model.first_layer=0", "model.epochs=1", *overrides,
    )  # fmt: skip


def train(settings: Config, run: Run) -> None:
    """What ``train.py`` does."""
    run.describe(settings, "python train.py")
    prepared = prepare_training(settings, run)
    model = trained_model(settings, run, prepared)
    report_scoring(run, settings, prepared, *predict_rows(model, prepared, settings))


def trained_model(settings: Config, run: Run, prepared: Any) -> Any:
    from lmsys_unsloth.train.training import train_or_load

    return train_or_load(settings, run, prepared, NoTracker())


def member(path: Path, name: str = "fold0", *overrides: str) -> Member:
    """A run as ``eval.py`` opens it, with overrides."""
    return Member(Run(path / name), settings(path, f"fold={name[-1]}", *overrides))


def read(path: Path) -> Lines:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, lines: Sequence[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def stored_metrics(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.metrics.read_text())
    return found


def validation_ids(path: Path, fold: int = 0) -> list[str]:
    return [line["id"] for line in read(path / f"fold{fold}" / "folds.csv") if int(line["fold"]) == fold]


def test_a_run_is_scored_on_its_own_fold_again(folder: Path, tmp_path: Path) -> None:
    evaluation.evaluate_run(member(folder), Run(tmp_path))
    again, first = (
        read_predictions(Run(tmp_path).predictions),
        read_predictions(Run(folder / "fold0").predictions),
    )
    assert list(again.ids) == list(first.ids) == validation_ids(folder)
    np.testing.assert_array_equal(again.probabilities, first.probabilities)


@pytest.mark.parametrize("change", ["none", "ids", "order of the responses", "white space", "other rows too"])
def test_trained_rows_of_a_copied_file_are_left_out_and_counted(
    folder: Path, tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = read(folder / "train.csv")
    kept = set(validation_ids(folder))
    if change == "ids":
        lines = [line | {"id": f"new-{line['id']}"} for line in lines]
        kept = {f"new-{row_id}" for row_id in kept}
    elif change == "order of the responses":
        lines = [swapped(line) for line in lines]
    elif change == "white space":
        lines = [line | {"prompt": line["prompt"].replace(" ", "  ")} for line in lines]
    elif change == "other rows too":
        assert simulate(["rows=4", "seed=1", "length=short", f"out={tmp_path / 'new.csv'}"]) == 0
        new = read(tmp_path / "new.csv")
        lines += new
        kept |= {line["id"] for line in new}
    copy, output = write(tmp_path / "copy.csv", lines), Run(tmp_path / "eval")
    with caplog.at_level("INFO"):
        evaluation.evaluate_run(member(folder, "fold0", f"data.path={copy}"), output)
    assert set(read_predictions(output.predictions).ids) == kept
    left_out = ROWS - len(validation_ids(folder))
    assert f"{left_out} of {len(lines)} rows were used to train" in caplog.text
    assert stored_metrics(output)["trained_rows"] == {"left_out": left_out, "scored": 0}
    assert f"{left_out} labelled rows were not scored" in output.report.read_text()


def swapped(line: dict[str, str]) -> dict[str, str]:
    exchanged = {"a": "b", "b": "a"}
    return {
        name: line[f"{name[:-1]}{exchanged[name[-1]]}"] if name[-2:] in ("_a", "_b") else value
        for name, value in line.items()
    }


def test_any_changed_data_setting_leaves_trained_rows_out(folder: Path, tmp_path: Path) -> None:
    evaluation.evaluate_run(
        member(folder, "fold0", "data.fold_seed=7", "data.near_duplicate=1"), Run(tmp_path)
    )
    assert list(read_predictions(Run(tmp_path).predictions).ids) == validation_ids(folder)


def test_another_fold_of_the_same_data_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)nothing to score.*eval.trained_rows=include"):
        evaluation.evaluate_run(member(folder, "fold0", "fold=1"), Run(tmp_path))


def test_trained_rows_can_be_included_and_mark_the_report(folder: Path, tmp_path: Path) -> None:
    output = Run(tmp_path)
    evaluation.evaluate_run(member(folder, "fold0", "eval.trained_rows=include"), output)
    assert len(read_predictions(output.predictions)) == ROWS
    trained = ROWS - len(validation_ids(folder))
    assert stored_metrics(output)["trained_rows"] == {"left_out": 0, "scored": trained}
    assert f"{trained} of the {ROWS} scored rows were used to train" in output.report.read_text()


def test_rows_of_extra_data_count_as_trained(folder: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.csv"
    assert simulate(["rows=12", "seed=2", "length=short", f"out={extra}"]) == 0
    run = Run(tmp_path / "RUN")
    with_extra = settings(folder, f"data.extra=[{extra}]")
    train(with_extra, run)
    used = json.loads(run.data.read_text())["extra"][0]["used"]
    assert used > 0
    output, others = Run(tmp_path / "eval"), settings(folder, f"data.path={extra}", "data.extra=[]")
    if used == 12:
        with pytest.raises(UserError, match="nothing to score"):
            evaluation.evaluate_run(Member(run, others), output)
    else:
        evaluation.evaluate_run(Member(run, others), output)
        assert len(read_predictions(output.predictions)) == 12 - used


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


def test_folds_are_merged_from_stored_predictions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("nothing has to be scored again"))
    members = [member(folder, f"fold{fold}") for fold in range(FOLDS)]
    evaluation.evaluate_runs(members, Run(tmp_path))
    merged = read_predictions(Run(tmp_path).predictions)
    assert len(merged) == ROWS and set(merged.folds.tolist()) == set(range(FOLDS))


def test_folds_are_merged_under_another_file_name(folder: Path, tmp_path: Path) -> None:
    copy = write(tmp_path / "copy.csv", read(folder / "train.csv"))
    members = [member(folder, f"fold{fold}", f"data.path={copy}") for fold in range(FOLDS)]
    evaluation.evaluate_runs(members, Run(tmp_path / "cv"))
    assert len(read_predictions(Run(tmp_path / "cv").predictions)) == ROWS


def test_eval_settings_of_the_command_hold_for_merged_folds(folder: Path, tmp_path: Path) -> None:
    swap = "eval.swap=average"
    evaluation.evaluate_runs(
        [member(folder, f"fold{fold}", swap) for fold in range(FOLDS)], Run(tmp_path / "cv")
    )
    merged = read_predictions(Run(tmp_path / "cv").predictions)
    assert stored_metrics(Run(tmp_path / "cv"))["swap"]["n"] == ROWS
    evaluation.evaluate_run(member(folder, "fold1", swap), Run(tmp_path / "one"))
    one = read_predictions(Run(tmp_path / "one").predictions)
    np.testing.assert_array_equal(merged.probabilities[merged.folds == 1], one.probabilities)


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


def test_a_merge_of_runs_that_scored_trained_rows_is_marked(folder: Path, tmp_path: Path) -> None:
    debug = ("debug.evaluate_on_train=true", "debug.train_rows=5")
    for number in (0, 1):
        train(settings(folder, f"seed={number}", *debug), Run(tmp_path / f"RUN{number}"))
    members = [Member(Run(tmp_path / f"RUN{n}"), settings(folder, f"seed={n}", *debug)) for n in (0, 0)]
    evaluation.evaluate_runs(members, Run(tmp_path / "all"))
    assert stored_metrics(Run(tmp_path / "all"))["trained_rows"]["scored"] == 10


@pytest.fixture
def new_rows(tmp_path: Path) -> Path:
    assert simulate(["rows=6", "seed=3", "length=short", f"out={tmp_path / 'new.csv'}"]) == 0
    return tmp_path / "new.csv"


def test_folds_predict_new_rows_calibrated_and_stacked(folder: Path, tmp_path: Path, new_rows: Path) -> None:
    winners = ("winner_model_a", "winner_model_b", "winner_tie")
    unlabelled = [{k: v for k, v in line.items() if k not in winners} for line in read(new_rows)]
    test = write(tmp_path / "test.csv", unlabelled)
    found = {}
    for setting in ("eval.stack=false", "eval.calibrate=temperature", "eval.stack=true"):
        members = [member(folder, f"fold{fold}", f"data.path={test}", setting) for fold in range(FOLDS)]
        output = Run(tmp_path / setting)
        evaluation.evaluate_runs(members, output)
        lines = read(output.submission)
        assert [line["id"] for line in lines] == [line["id"] for line in unlabelled]
        found[setting] = np.array([[float(line[name]) for name in winners] for line in lines])
        np.testing.assert_allclose(found[setting].sum(axis=1), 1, atol=1e-6)
    raw, calibrated, stacked = found.values()
    assert np.abs(raw - calibrated).max() > 1e-4 and np.abs(calibrated - stacked).max() > 1e-4
    stored = read_predictions(Run(tmp_path / "eval.stack=true").predictions)
    np.testing.assert_allclose(unadjusted(stored).probabilities, raw, atol=1e-6)
    assert "predictions only (stacked)" in Run(tmp_path / "eval.stack=true").report.read_text()


def test_merged_folds_are_stacked_from_raw_predictions(folder: Path, tmp_path: Path) -> None:
    for setting in ("eval.stack=false", "eval.stack=true"):
        members = [member(folder, f"fold{fold}", setting) for fold in range(FOLDS)]
        evaluation.evaluate_runs(members, Run(tmp_path / setting))
    plain, stacked = (Run(tmp_path / f"eval.stack={value}") for value in ("false", "true"))
    raw, final = read_predictions(plain.predictions), read_predictions(stacked.predictions)
    np.testing.assert_array_equal(unadjusted(final).probabilities, raw.probabilities)
    first, second = stored_metrics(plain), stored_metrics(stacked)
    assert (first["adjustment"], second["adjustment"]) == ("none", "stack")
    assert first["adjusted"] == second["adjusted"] and second["n"] == ROWS
    assert first["log_loss"] == first["adjusted"]["raw"]["log_loss"]
    assert second["log_loss"] == pytest.approx(second["adjusted"]["stack"]["log_loss"], abs=1e-6)
    assert first["temperature"] == second["temperature"]
    assert json.loads(stacked.calibration.read_text())["rows"] == ROWS
    assert "difference from raw" in plain.report.read_text()


def test_a_run_is_calibrated_out_of_fold_on_its_own_rows_and_by_them_on_new_ones(
    folder: Path, tmp_path: Path, new_rows: Path
) -> None:
    setting, trained = "eval.calibrate=temperature", Run(folder / "fold0")
    evaluation.evaluate_run(member(folder, "fold0", setting), Run(tmp_path / "own"))
    own = stored_metrics(Run(tmp_path / "own"))
    assert own["log_loss"] == pytest.approx(own["log_loss_after_temperature"], abs=1e-6)
    evaluation.evaluate_run(member(folder, "fold0", setting, f"data.path={new_rows}"), Run(tmp_path / "new"))
    new = read_predictions(Run(tmp_path / "new").predictions)
    temperature = json.loads(trained.calibration.read_text())["temperature"]
    np.testing.assert_allclose(
        new.probabilities,
        apply_temperature(unadjusted(new).probabilities.astype(np.float64), temperature),
        atol=1e-6,
    )
    assert not Run(tmp_path / "new").calibration.exists()


def test_an_untrained_model_is_not_calibrated_without_labels(
    folder: Path, tmp_path: Path, new_rows: Path
) -> None:
    lines = [{k: v for k, v in line.items() if not k.startswith("winner")} for line in read(new_rows)]
    test = write(tmp_path / "test.csv", lines)
    with pytest.raises(UserError, match=r"(?s)eval.calibrate=temperature.*none of the 6 rows"):
        evaluation.evaluate_untrained(
            settings(folder, f"data.path={test}", "eval.calibrate=temperature"), Run(tmp_path / "eval")
        )


def test_averaged_adapters_predict_new_rows(folder: Path, tmp_path: Path, new_rows: Path) -> None:
    found = {}
    for average in ("probabilities", "weights"):
        settings = (f"data.path={new_rows}", f"eval.average={average}", "eval.stack=true")
        members = [member(folder, f"fold{fold}", *settings) for fold in range(FOLDS)]
        evaluation.evaluate_runs(members, Run(tmp_path / average))
        found[average] = unadjusted(read_predictions(Run(tmp_path / average).predictions)).probabilities
    distance = np.abs(found["weights"] - found["probabilities"]).sum(axis=1).mean() / 2
    compared = stored_metrics(Run(tmp_path / "weights"))["weight_average"]
    assert (compared["runs"], compared["rows"]) == (FOLDS, 6)
    assert compared["mean_distance"] == pytest.approx(distance, abs=1e-6)
    report = Run(tmp_path / "weights").report.read_text()
    assert f"averaged adapters of {FOLDS} runs" in report


def test_averaged_adapters_are_refused_on_the_runs_own_rows_and_for_other_models(
    folder: Path, tmp_path: Path, new_rows: Path
) -> None:
    weights = "eval.average=weights"
    with pytest.raises(UserError, match=r"(?s)eval.average=weights.*data.path=FILE"):
        evaluation.evaluate_runs([member(folder, f"fold{fold}", weights) for fold in (0, 1)], Run(tmp_path))
    full = ("lora.kind=full", "model.load_in_4bit=false")
    for changes in (full, ("head.kind=linear",), ("prompt.max_tokens=200",)):
        members = [member(folder, "fold0", weights, f"data.path={new_rows}")]
        members.append(member(folder, "fold1", weights, f"data.path={new_rows}", *changes))
        with pytest.raises(UserError, match=r"(?s)fold1.*eval.average=probabilities"):
            evaluation.evaluate_runs(members, Run(tmp_path))


def test_several_runs_over_new_rows_load_the_base_and_encode_once(
    folder: Path, tmp_path: Path, new_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"fold{fold}" for fold in range(FOLDS)]
    alone = []
    for name in names:
        evaluation.evaluate_run(
            member(folder, name, f"data.path={new_rows}", "eval.swap=average"), Run(tmp_path / name)
        )
        alone.append(read_predictions(Run(tmp_path / name).predictions).probabilities)
    loads: list[str] = []
    encodings: list[int] = []
    load_model, encode = loading.load_model, RowEncoder.encode

    def counted_load(*arguments: Any) -> Any:
        loads.append("base")
        return load_model(*arguments)

    def counted_encode(self: RowEncoder, rows: Any, progress: bool = False) -> Any:
        encodings.append(len(rows))
        return encode(self, rows, progress)

    monkeypatch.setattr(loading, "load_model", counted_load)
    monkeypatch.setattr(RowEncoder, "encode", counted_encode)
    monkeypatch.setenv("LMSYS_UNSLOTH_CACHE", str(tmp_path / "cache"))
    members = [member(folder, name, f"data.path={new_rows}", "eval.swap=average") for name in names]
    evaluation.evaluate_runs(members, Run(tmp_path / "all"))
    assert len(loads) == 1
    assert encodings == [6, 6]  # the rows, and the swapped rows
    together = read_predictions(Run(tmp_path / "all").predictions).probabilities
    assert np.abs(alone[0] - alone[1]).max() > 1e-4
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)


def test_rows_that_any_of_several_runs_was_trained_on_are_left_out(
    folder: Path, tmp_path: Path, new_rows: Path
) -> None:
    mixed = write(tmp_path / "mixed.csv", [*read(folder / "train.csv"), *read(new_rows)])
    members = [member(folder, f"fold{fold}", f"data.path={mixed}") for fold in (0, 1)]
    evaluation.evaluate_runs(members, Run(tmp_path / "all"))
    assert len(read_predictions(Run(tmp_path / "all").predictions)) == 6
    assert stored_metrics(Run(tmp_path / "all"))["trained_rows"]["left_out"] == ROWS


def test_runs_on_different_data_are_not_merged(folder: Path, tmp_path: Path, new_rows: Path) -> None:
    other = settings(folder, f"data.path={new_rows}", "data.folds=2")
    train(other, Run(tmp_path / "other"))
    with pytest.raises(UserError, match=r"(?s)other: trained on other data than .*fold0.*data.path=FILE"):
        evaluation.evaluate_runs(
            [member(folder), Member(Run(tmp_path / "other"), other)], Run(tmp_path / "all")
        )
