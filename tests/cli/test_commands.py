"""train.py and eval.py as a user types them, with a tiny model so that each takes seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from tiny import save_tiny_llama

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "data.rows=60", "data.folds=3", "train.max_steps=3", "train.rows_per_step=4", "model.first_layer=0",
]  # fmt: skip
V2 = [*SMALL, "prompt=v2"]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def run(*arguments: str, cwd: Path, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``python train.py …`` in a folder of its own, with nobody logged in to wandb."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "NETRC": str(cwd / "none"),
        "WANDB_CONFIG_DIR": str(cwd / "wandb_config"),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / arguments[0]), *arguments[1:]],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=400, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    cwd = tmp_path_factory.mktemp("work")
    arguments = [*V2, f"model.path={tiny_folder}", "logger=wandb", "hydra.run.dir=RUN", "data.swap=both"]
    done = run("train.py", *arguments, cwd=cwd)
    assert "run directory: RUN" in done.stdout
    return cwd / "RUN"


@pytest.mark.slow
def test_a_run_directory_holds_what_the_readme_says(trained: Path, tiny_folder: Path) -> None:
    names = {str(file.relative_to(trained)) for file in trained.rglob("*") if file.is_file()}
    assert {
        ".hydra/config.yaml", "config.yaml", "env.json", "data.json", "folds.csv", "samples.json",
        "train.log", "training.json", "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
        "adapter/README.md", "predictions.parquet", "metrics.json", "report.html",
    } <= names  # fmt: skip
    assert (trained / "checkpoints" / "checkpoint-3" / "complete.json").is_file()
    assert list((trained / "plots").iterdir())
    predictions = pd.read_parquet(trained / "predictions.parquet")
    assert list(predictions.columns[:6]) == ["id", "fold", "p_a", "p_b", "p_tie", "label"]
    assert set(predictions.dtypes[["p_a", "p_b", "p_tie"]].astype(str)) == {"float32"}
    np.testing.assert_allclose(predictions[["p_a", "p_b", "p_tie"]].sum(axis=1), 1, atol=1e-6)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"log_loss", "log_loss_ci", "accuracy", "n", "baselines"} <= metrics.keys() and metrics[
        "n"
    ] == len(predictions)
    samples = json.loads((trained / "samples.json").read_text())
    assert len(samples) == 8 and samples[0].keys() == {"id", "text", "input_ids", "answer_ids"}
    assert [sample["id"] for sample in samples] == predictions["id"][:8].tolist()
    assert samples[0]["answer_ids"] == [[330], [389], [47832]] and samples[0]["text"].endswith(
        "### Best response:"
    )
    assert json.loads((trained / "env.json").read_text())["command"].startswith(
        "python train.py data.rows=60"
    )
    assert not (trained.parent / "unsloth_compiled_cache").exists()


@pytest.mark.slow
def test_wandb_goes_offline_without_a_question(trained: Path) -> None:
    (offline,) = (trained / "wandb").glob("offline-run-*")
    assert offline.name.endswith((trained / "wandb_id").read_text())


@pytest.mark.slow
def test_every_fold_is_trained_apart_and_merged_by_one_command(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = [word for word in V2 if not word.startswith("data.folds=")]
    done = run(
        "train.py", "cv=2", *arguments, f"model.path={tiny_folder}", "logger=wandb",
        "hydra.sweep.dir=SWEEP", cwd=tmp_path,
    )  # fmt: skip
    assert "sweep report: SWEEP/sweep.html" in done.stdout
    jobs = sorted((tmp_path / "SWEEP").glob("smollm2-*"))
    assert [job.name.rpartition("-")[0] for job in jobs] == ["smollm2-v2-fold0", "smollm2-v2-fold1"]
    ids = {(job / "wandb_id").read_text() for job in jobs}
    assert len(ids) == 2 and all(len(list((job / "wandb").glob("offline-run-*"))) == 1 for job in jobs)
    assert {json.loads((job / "env.json").read_text())["command"] for job in jobs}
    merged = json.loads((tmp_path / "SWEEP" / "metrics.json").read_text())
    assert merged["n"] == 60 and len(merged["folds"]) == 2


@pytest.mark.slow
def test_ctrl_c_and_resume(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = [
        *SMALL[:2],
        SMALL[-1],
        "train.rows_per_step=1",
        "train.epochs=40",
        "train.learning_rate=1e-5",
        "hydra.run.dir=RUN",
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, f"model.path={tiny_folder}"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    log = tmp_path / "RUN" / "train.log"
    while not (log.is_file() and "training:" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors[-2000:]
    assert "resume with: python train.py resume=RUN" in errors and "Traceback" not in errors
    refused = run("train.py", "resume=RUN", "train.epochs=2", cwd=tmp_path, status=2)
    assert "train.epochs=2 would change it" in refused.stderr
    # a shorter training, so that the test ends soon
    config = (tmp_path / "RUN" / "config.yaml").read_text()
    (tmp_path / "RUN" / "config.yaml").write_text(config.replace("max_steps: null", "max_steps: 60"))
    run("train.py", "resume=RUN", cwd=tmp_path)
    assert json.loads((tmp_path / "RUN" / "training.json").read_text())["resumed_at_step"] >= 1
    assert (tmp_path / "RUN" / "metrics.json").is_file()
    assert "epochs=40" in (tmp_path / "RUN" / ".hydra" / "overrides.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py", "lora.r=abc", "lora.x=1"], "2 problems in the configuration"),
        (["train.py", "fold=9"], "the folds are 0 to 4"),
        (["train.py", "data=lmsys"], "data=lmsys needs data.path=FILE"),
        (["train.py", "debug=parity"], "compares forward passes without training; use eval.py"),
        (["train.py", "resume=nowhere"], "no such run directory"),
        (["eval.py", "run=nowhere"], "no such run directory"),
        (["eval.py", "resume=nowhere"], "no such run directory"),
        (["eval.py", "run=."], "not a run directory, it has no config.yaml"),
    ],
)
def test_mistakes_are_answered_before_slow_imports(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = run(*arguments, cwd=tmp_path, status=2, PYTHONPROFILEIMPORTTIME="1")
    assert message in done.stderr
    assert {"hydra", "pydantic"} <= imported(done.stderr)
    assert not {"torch", "transformers", "unsloth"} & imported(done.stderr)


def imported(import_times: str) -> set[str]:
    """Names of the modules in the output of Python's import timer."""
    lines = [line for line in import_times.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_an_unreachable_hub_names_both_remedies_before_slow_imports(tmp_path: Path) -> None:
    done = run(
        "train.py", "model=qwen2.5-1.5b", "data.rows=60", f"hydra.run.dir={tmp_path}/RUN",
        cwd=tmp_path, status=2, PYTHONPROFILEIMPORTTIME="1",
    )  # fmt: skip
    assert "unsloth/Qwen2.5-1.5B" in done.stderr
    assert "hf download" in done.stderr and "model.path=DIR" in done.stderr
    assert not {"unsloth", "transformers"} & imported(done.stderr)


@pytest.mark.slow
def test_parity_of_a_model_and_of_a_run_on_the_command_line(trained: Path, tiny_folder: Path) -> None:
    for number, arguments in enumerate(([*V2, f"model.path={tiny_folder}"], ["run=RUN"])):
        done = run("eval.py", *arguments, "debug=parity", f"hydra.run.dir=PARITY{number}", cwd=trained.parent)
        assert "fast, packed" in done.stdout and f"run directory: PARITY{number}" in done.stdout
        assert json.loads((trained.parent / f"PARITY{number}" / "parity.json").read_text())["ok"]


@pytest.mark.slow
def test_an_interrupted_scoring_goes_on_in_its_directory(trained: Path) -> None:
    cwd, words = trained.parent, ["run=RUN", "eval.tokens_per_batch=1"]
    stop = (
        f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from lmsys_unsloth.model.answer_head import AnswerHead\n"
        "ordinary, calls = AnswerHead.logits, []\n"
        "def logits(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4: raise KeyboardInterrupt\n"
        "    return ordinary(*arguments)\n"
        "AnswerHead.logits = logits\n"
        f"runpy.run_path({str(ROOT / 'eval.py')!r}, run_name='__main__')\n"
    )
    (cwd / "stop").mkdir()
    (cwd / "stop" / "eval.py").write_text(stop)
    done = run(str(cwd / "stop" / "eval.py"), *words, "hydra.run.dir=OUT", cwd=cwd, status=130)
    assert "resume with: python eval.py run=RUN eval.tokens_per_batch=1 resume=OUT" in done.stderr
    (file,) = (cwd / "OUT" / "partial_scores").iterdir()
    assert len(file.read_text().splitlines()) == 3
    done = run("eval.py", *words, "resume=OUT", cwd=cwd)
    assert "run directory: OUT" in done.stdout and not file.exists()
    run("eval.py", *words, "hydra.run.dir=WHOLE", cwd=cwd)
    files = [cwd / name / "predictions.parquet" for name in ("OUT", "WHOLE")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_a_command_s_own_settings_hold_for_a_trained_run(trained: Path) -> None:
    """Values of ``eval``, and the groups ``logger`` and ``debug``; its model can not be exchanged."""
    cwd = trained.parent
    simulated = ["-m", "lmsys_unsloth.simulate", "rows=60", "length=short", "out=copy.csv"]
    subprocess.run(
        [sys.executable, *simulated], cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )
    done = run(
        "eval.py", "run=RUN", "data.path=copy.csv", "logger=wandb", "logger.project=other", "debug=smoke",
        "debug.validation_rows=6", "eval.swap=average", "hydra.run.dir=OWN", cwd=cwd,
    )  # fmt: skip
    assert "40 of 60 rows were used to train RUN and are left out" in done.stdout
    assert list((cwd / "OWN" / "wandb").glob("offline-run-*"))
    found = json.loads((cwd / "OWN" / "metrics.json").read_text())
    assert found["n"] == found["swap"]["n"] == 6
    config = yaml.safe_load((cwd / "OWN" / "config.yaml").read_text())
    assert config["logger"]["project"] == "other" and config["train"]["max_steps"] == 3
    refused = run("eval.py", "run=RUN", "model=llama3", cwd=cwd, status=2)
    assert "model=llama3: a trained run is scored with its own settings" in refused.stderr
