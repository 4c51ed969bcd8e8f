"""Several runs together: folds are merged, models averaged, and what can be shared is done once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained_runs import FOLDS, ROWS, member, read, settings, stored_metrics, train, write

from lmsys_unsloth.cli import evaluation
from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.evaluate.predictions import read_predictions, unadjusted
from lmsys_unsloth.model import loading
from lmsys_unsloth.prompting.encoding import RowEncoder

pytestmark = pytest.mark.slow


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


def test_a_cascade_predicts_the_least_certain_rows_with_the_second_run(
    folder: Path, tmp_path: Path, new_rows: Path
) -> None:
    settings = (f"data.path={new_rows}", "eval.average=cascade", "eval.cascade_share=0.34")
    members = [member(folder, name, *settings) for name in ("fold0", "fold1")]
    evaluation.evaluate_runs(members, Run(tmp_path / "cascade"))
    found = unadjusted(read_predictions(Run(tmp_path / "cascade").predictions)).probabilities
    alone = []
    for name in ("fold0", "fold1"):
        evaluation.evaluate_run(member(folder, name, f"data.path={new_rows}"), Run(tmp_path / name))
        alone.append(unadjusted(read_predictions(Run(tmp_path / name).predictions)).probabilities)
    least = np.argsort(alone[0].max(axis=1), kind="stable")[:2]
    expected = alone[0].copy()
    expected[least] = alone[1][least]
    # Another batch: probabilities, which are below 1, may be rounded another way in bfloat16.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * 2.0**-8)
    assert np.abs(alone[0][least] - alone[1][least]).max() > 2 * 2.0**-8
    wrong = [member(folder, "fold0", "eval.average=cascade", "eval.stack=true")] * 3
    with pytest.raises(UserError, match=r"(?s)there are 3.*name another file.*be calibrated"):
        evaluation.evaluate_runs(wrong, Run(tmp_path / "wrong"))


def test_averaged_adapters_and_the_runs_they_are_compared_with_share_the_base_model(
    folder: Path, tmp_path: Path, new_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load_model = loading.load_model

    def counted_load(*arguments: Any) -> Any:
        loads.append("base")
        return load_model(*arguments)

    monkeypatch.setattr(loading, "load_model", counted_load)
    settings = (f"data.path={new_rows}", "eval.average=weights")
    evaluation.evaluate_runs([member(folder, f"fold{fold}", *settings) for fold in (0, 1)], Run(tmp_path))
    assert len(loads) == 1


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


def test_runs_on_different_data_are_not_merged(folder: Path, tmp_path: Path, new_rows: Path) -> None:
    other = settings(folder, f"data.path={new_rows}", "data.folds=2")
    train(other, Run(tmp_path / "other"))
    with pytest.raises(UserError, match=r"(?s)other: trained on other data than .*fold0.*data.path=FILE"):
        evaluation.evaluate_runs(
            [member(folder), Member(Run(tmp_path / "other"), other)], Run(tmp_path / "all")
        )
