"""``doctor``, its file for bug reports, and the estimate of the time that a run takes."""

from __future__ import annotations

import importlib.metadata
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from factories import config

from lmsys_unsloth.cli.machine import bundle, cost, diagnosis
from lmsys_unsloth.cli.machine.cost import describe_cost, scoring_operations, training_operations
from lmsys_unsloth.cli.machine.speed import product_rate
from lmsys_unsloth.commands import doctor
from lmsys_unsloth.config.run_directory import Run

SHAPE = {
    "model_type": "llama", "hidden_size": 100, "intermediate_size": 200, "num_hidden_layers": 11,
    "num_attention_heads": 10, "num_key_value_heads": 10,
}  # fmt: skip
LAYER = 4 * 100 * 100 + 3 * 100 * 200


def prepared(train: int, scored: int, tokens: int) -> Any:
    row = SimpleNamespace(input_ids=np.zeros(tokens, dtype=np.int64))
    return SimpleNamespace(train=[row] * train, scored=[row] * scored, early_stopping=[row])


def test_operations_are_those_of_the_matrices_that_a_token_passes() -> None:
    assert scoring_operations(SHAPE) == 2 * 10 * LAYER
    adapters = config("lora.first_layer=0", "train.epochs=1")
    assert training_operations(adapters, SHAPE) == 2 * scoring_operations(SHAPE)
    recomputed = config("lora.first_layer=0", "train.checkpoint=all")
    assert training_operations(recomputed, SHAPE) == 3 * scoring_operations(SHAPE)
    half = config("lora.first_layer=5", "train.epochs=1")
    assert training_operations(half, SHAPE) == 2 * LAYER * (5 * 2 + 5)


def test_the_line_before_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(cost, "product_rate", lambda *given: measured.append(given) or 1e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    settings = config(
        "lora.first_layer=0", "train.epochs=1", "train.time_budget=10m", "eval.swap=none"
    )  # fmt: skip
    line = describe_cost(settings, SHAPE, prepared(50_000, 4000, 100))
    assert measured == [(100, 200, torch.bfloat16)]
    # 5 million tokens × 4 · 10⁶ operations at 0.6 · 10⁹ a second, 0.4 million × 2 · 10⁶ at 0.7 · 10⁹
    assert line is not None and "50,000 rows to train on, 5.0 M tokens in 1 epoch: about 9 h 20 min" in line
    assert "of which train.time_budget allows 10m" in line
    assert "4,000 rows to score (0.4 M tokens): about 19 min" in line
    short = config("lora.first_layer=0", "train.max_steps=10", "train.rows_per_step=8", "eval.swap=average")
    line = describe_cost(short, SHAPE, prepared(50_000, 4000, 100))
    assert line is not None and "8,000 tokens in 2 epochs, stopped after 10 steps" in line
    assert "(0.8 M tokens): about 38 min" in line
    assert describe_cost(short, {"model_type": "gpt2"}, prepared(1, 1, 1)) is None


def test_what_a_step_does_besides_products_takes_as_long_with_instructions_for_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rates = {torch.float32: 1e9, torch.bfloat16: 8e9}
    monkeypatch.setattr(cost, "product_rate", lambda width, inner, dtype: rates[dtype])
    slow = cost._Speed.measure(config("model.dtype=float32"), SHAPE)
    fast = cost._Speed.measure(config(), SHAPE)
    assert slow.seconds("training", 1e10) == pytest.approx(10 + 4.5)
    assert fast.seconds("training", 1e10) == pytest.approx(10 / 8 + 4.5)
    own_forward = cost._Speed.measure(config("train.fast=false"), SHAPE)
    assert own_forward.seconds("scoring", 1e10) == pytest.approx(1.4 * fast.seconds("scoring", 1e10))


def test_the_rate_of_a_product_is_measured() -> None:
    assert 0 < product_rate(32, 64, torch.float32) < 1e16


def test_the_doctor_says_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pins = {"torch": "0.1", "unsloth": "2026.10.9", "no-such-package": "1.0"}
    monkeypatch.setattr(diagnosis, "pinned_versions", lambda *files: pins if "base.txt" in files else {})
    monkeypatch.setattr(diagnosis, "product_rate", lambda *given: 5e11)
    assert doctor.main([]) == 1
    printed = capsys.readouterr()
    assert "500 GFLOP/s" in printed.out and "(pinned: 0.1)" in printed.out
    assert "pip install no-such-package==1.0" in printed.err


def test_packages_without_their_dependencies_are_installed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "pinned_versions", lambda *files: {"unsloth": "1"})
    monkeypatch.setattr(diagnosis, "installed_versions", lambda names: {})
    (missing,) = [check for check in diagnosis._packages() if check.name == "packages"]
    assert missing.verdict == "error" and "pip install --no-deps unsloth==1" in missing.remedy


def test_a_gpu_that_torch_cannot_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "has_gpu", lambda: True)
    assert diagnosis._no_gpu().verdict == "error"
    monkeypatch.setattr(diagnosis, "has_gpu", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert diagnosis._no_gpu().value == "hidden by CUDA_VISIBLE_DEVICES"


def test_a_processor_without_bfloat16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "product_rate", lambda *given: 1e9)
    monkeypatch.setattr(diagnosis, "processor_flags", lambda: {"avx2"})
    assert next(iter(diagnosis._processor_speed())).verdict == "warning"
    monkeypatch.setattr(diagnosis, "processor_flags", lambda: {"avx2", "amx_bf16"})
    assert next(iter(diagnosis._processor_speed())).verdict == "ok"


def test_a_bundle_has_numbers_and_nothing_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "secret-project" / "run")
    run.path.mkdir(parents=True)
    settings = config(
        f"data.path={tmp_path}/secret.csv", "data=lmsys", "logger=wandb", "logger.project=secret"
    )
    run.describe(settings, f"python train.py data.path={tmp_path}/secret.csv")
    (run.path / "train.log").write_text(
        f"reading {tmp_path}/secret.csv\nrows with ids secret-1, secret-2\nkey hf_secretsecret of "
        f"me@secret.org at https://secret.org/x, {tmp_path}/secret folder/file\nstep 3 of 7\n"
    )
    (run.path / "training.json").write_text(json.dumps({"steps": 7}))
    for name in ("predictions.parquet", "samples.json", "training_rows.csv"):
        (run.path / name).write_text("secret")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    monkeypatch.setattr(diagnosis, "product_rate", lambda *given: 1e9)
    assert doctor.main(["--bundle", str(tmp_path / "b.zip"), f"run={run.path}"]) in (0, 1)
    assert "look into it before you send it" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert not {name for name, text in texts.items() if "secret" in text}
    assert "step 3 of 7" in texts["train.log"] and json.loads(texts["training.json"]) == {"steps": 7}
    assert "learning_rate" in texts["config.yaml"] and "data.path" not in texts["env.json"]
    assert f"pytest=={importlib.metadata.version('pytest')}" in texts["packages.txt"]


def test_names_of_the_user_and_the_machine_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_user", lambda: "marie")
    monkeypatch.setattr(cast(Any, bundle.platform), "node", lambda: "box7")
    assert bundle.redact("marie on box7: /home/marie/x") == "<name> on <name>: <path>"


@pytest.mark.parametrize("words", [["bundle=report.txt"], ["speed=1"], ["run=nowhere"]])
def test_wrong_arguments_of_the_doctor(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(words) == 2 and capsys.readouterr().err.startswith("error: ")
