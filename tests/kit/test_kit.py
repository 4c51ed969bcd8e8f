"""A kit predicts a test file without network, and is written whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trained_runs import FOLDS, member, read

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.kit.__main__ import main
from lmsys_unsloth.kit.kit import Packages, requirements, write_kit


def offline() -> list[str]:
    """Words before a command that take the network away, where the system allows it."""
    if shutil.which("unshare") and not subprocess.run(["unshare", "-rn", "true"], check=False).returncode:
        return ["unshare", "-rn"]
    return []


@pytest.mark.slow
def test_a_kit_predicts_a_test_file_without_network(folder: Path, tmp_path: Path, new_rows: Path) -> None:
    from lmsys_unsloth.cli import evaluation

    members = [member(folder, f"fold{fold}") for fold in range(FOLDS)]
    evaluation.evaluate_runs(members, Run(tmp_path / "cv"))
    Run(tmp_path / "cv").describe(members[0].config, "python eval.py")
    kit = write_kit(tmp_path / "cv", tmp_path / "kit", None, base=True)
    assert set(kit.megabytes) == {"models", "base", "package"} and "included" in str(kit)
    texts = [line["prompt"] for line in read(folder / "train.csv")]
    small = [f for f in (tmp_path / "kit" / "models").rglob("*") if f.suffix in (".json", ".yaml", ".csv")]
    assert small and not any(text in f.read_text() for f in small for text in texts)
    lines = read(new_rows)
    for line in lines:
        for name in ("winner_model_a", "winner_model_b", "winner_tie", "model_a", "model_b"):
            line.pop(name, None)
    lines[0]["response_a"] = "[null]"  # as in the hidden rows of Kaggle
    test = tmp_path / "test.csv"
    with test.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "prompt", "response_a", "response_b"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    sample = tmp_path / "sample.csv"
    order = [line["id"] for line in reversed(lines)]
    header = "id,winner_model_a,winner_model_b,winner_tie"
    sample.write_text("\n".join([header, *(f"{i},0.3,0.3,0.4" for i in order)]) + "\n")
    words = [f"test={test}", f"out={tmp_path / 'submission.csv'}", f"sample={sample}", "time_budget=10m"]
    done = subprocess.run(
        [*offline(), sys.executable, str(tmp_path / "kit" / "predict.py"), *words],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = read(tmp_path / "submission.csv")
    assert [line["id"] for line in found] == order
    for line in found:
        p = [float(line[f"winner_{name}"]) for name in ("model_a", "model_b", "tie")]
        assert sum(p) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_a_kit_without_weights_names_the_base_model(folder: Path, tmp_path: Path) -> None:
    kit = write_kit(folder / "fold0", tmp_path / "kit", None, base=False)
    assert not list((tmp_path / "kit" / "base").glob("*.safetensors")) and "not included" in str(kit)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "kit" / "predict.py"), "test=a.csv", "out=b.csv"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "model=FOLDER" in done.stderr
    notebook = json.loads((tmp_path / "kit" / "submission.ipynb").read_text())
    assert notebook["nbformat"] == 4
    compile("".join(notebook["cells"][1]["source"][:-1]), "submission.ipynb", "exec")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["python=2.7"], "must be 3.11"),
        (["run=nothing"], "no such run directory"),
        (["out=."], "exists and is no kit"),
        (["wheel=true"], "no such argument"),
    ],
)
def test_mistakes_are_explained(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["run=x", "out=kit", *words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_packages_are_pinned_with_their_dependencies_and_torch_only_if_asked() -> None:
    names = {line.partition("==")[0] for line in requirements(Packages("3.11", "any", torch=False))}
    assert {"unsloth", "transformers", "peft", "hydra-core", "huggingface_hub"} <= names
    assert "torch" not in names
    # Of the documentation, the tests, sweeps and other loggers.
    assert not {"mkdocs", "pymdown-extensions", "pytest", "ray", "mlflow", "nbclient", "ruff"} & names
    assert any(line.startswith("torch==") for line in requirements(Packages("3.11", "any", torch=True)))


@pytest.mark.slow
def test_nothing_is_left_of_a_kit_whose_wheels_do_not_exist(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="wheels=false"):
        write_kit(folder / "fold0", tmp_path / "kit", Packages("3.11", "any", torch=False), base=False)
    assert not list(tmp_path.iterdir())
