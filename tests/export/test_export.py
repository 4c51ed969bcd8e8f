"""Exported models predict what the run predicts, in every format, for several architectures and heads."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file
from tiny import save_random_model, save_tiny_llama
from trained_runs import FOLDS, member, settings, train

from lmsys_unsloth import Predictor
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.form.offset import OFFSET_FILE
from lmsys_unsloth.evaluate import differences
from lmsys_unsloth.evaluate.differences import Agreement
from lmsys_unsloth.export import export as export_module
from lmsys_unsloth.export import gptq
from lmsys_unsloth.export.__main__ import main
from lmsys_unsloth.export.checking import validation_rows
from lmsys_unsloth.export.export import export

pytestmark = pytest.mark.slow

needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python, which has to be compiled"
)
BFLOAT16 = 2 * 2.0**-8
"""Weights are rounded to bfloat16 once more when adapters are merged; probabilities are below 1."""
SECRET = "xyzzy plugh"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A run of a tiny Gemma 2, whose logits are capped."""
    from lmsys_unsloth.model import smollm2

    path = tmp_path_factory.mktemp("gemma")
    shutil.copyfile(folder / "train.csv", path / "train.csv")
    smollm2.tokenizer().save_pretrained(path / "model")
    save_random_model("gemma2", path / "model", width=64, layers=2)
    train(settings(path, "fold=0"), Run(path / "fold0"))
    return path


def rows_of(path: Path) -> list[Comparison]:
    run = Run(path / "fold0")
    return validation_rows(run, member(path).config, 100)


def exported(path: Path, format: str, out: Path, **options: Any) -> NDArray[np.float32]:
    export(path / "fold0", format, out, force=True, **options)
    return Predictor.load(out).predict_comparisons(rows_of(path))


@pytest.mark.parametrize(
    "format", ["adapter", "merged16", "classifier", pytest.param("gguf", marks=needs_llama)]
)
def test_a_llama_predicts_the_same_in_every_format(folder: Path, tmp_path: Path, format: str) -> None:
    expected = Predictor.load(folder / "fold0").predict_comparisons(rows_of(folder))
    options = {"type": "f32"} if format == "gguf" else {}
    found = exported(folder, format, tmp_path / "out", **options)
    np.testing.assert_allclose(found, expected, atol=0 if format == "adapter" else BFLOAT16)
    assert (tmp_path / "out" / OFFSET_FILE).is_file()  # the default, and part of the predictions above
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["format"] == format and facts["agreement"]["rows"] == len(expected)
    assert facts["agreement"]["largest_difference"] == pytest.approx(np.abs(found - expected).max(), abs=1e-6)


@pytest.mark.parametrize("format", ["merged16", "classifier", pytest.param("gguf", marks=needs_llama)])
def test_gemma_2_keeps_its_caps_and_norms(gemma: Path, tmp_path: Path, format: str) -> None:
    expected = Predictor.load(gemma / "fold0").predict_comparisons(rows_of(gemma))
    options = {"type": "f32"} if format == "gguf" else {}
    found = exported(gemma, format, tmp_path / "out", **options)
    np.testing.assert_allclose(found, expected, atol=BFLOAT16)


@pytest.mark.parametrize(
    ("head", "format"),
    [
        ("lm_trained", "merged16"),
        pytest.param("lm_trained", "gguf", marks=needs_llama),
        ("linear", "classifier"),
    ],
)
def test_trained_heads_are_part_of_the_export(folder: Path, tmp_path: Path, head: str, format: str) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.copyfile(folder / "train.csv", tmp_path / "train.csv")
    train(settings(tmp_path, "fold=0", f"head={head}"), Run(tmp_path / "fold0"))
    expected = Predictor.load(tmp_path / "fold0").predict_comparisons(rows_of(tmp_path))
    options = {"type": "f32"} if format == "gguf" else {}
    found = exported(tmp_path, format, tmp_path / "out", **options)
    np.testing.assert_allclose(found, expected, atol=BFLOAT16)
    if head == "linear":
        with pytest.raises(UserError, match=r"can't hold head\.kind=linear"):
            export(tmp_path / "fold0", "gguf", tmp_path / "other")


def test_calibration_is_exported_and_no_part_of_the_comparison(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "fold0", tmp_path / "fold0")
    run = Run(tmp_path / "fold0")
    stored = yaml.safe_load(run.config.read_text())
    stored["eval"]["calibrate"] = "temperature"
    run.config.write_text(yaml.safe_dump(stored))
    facts = export(run.path, "adapter", tmp_path / "out")
    assert facts.agreement is not None and facts.agreement.largest_difference == 0
    expected = Predictor.load(run.path).predict_comparisons(rows_of(folder))
    found = Predictor.load(tmp_path / "out").predict_comparisons(rows_of(folder))
    np.testing.assert_array_equal(found, expected)
    raw = Predictor.load(run.path, "eval.calibrate=none").predict_comparisons(rows_of(folder))
    assert not np.allclose(found, raw, atol=BFLOAT16)


@pytest.mark.parametrize("format", ["fp8", "gptq8"])
def test_eight_bit_weights_are_close_and_for_vllm(
    folder: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = export(folder / "fold0", format, tmp_path / "out", force=True)
    assert facts.agreement is not None and 0 < facts.agreement.largest_difference < 0.1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="engine=vllm needs vLLM"):
        Predictor.load(tmp_path / "out").predict_comparisons(rows_of(folder))
    if format == "gptq8":
        export(folder / "fold0", "merged16", tmp_path / "plain", rows=0)
        require_gptq_rounding(tmp_path / "plain", tmp_path / "out")


def require_gptq_rounding(plain: Path, quantised: Path) -> None:
    """Weights move by half a step, and a little further by the errors of earlier columns."""
    before, packed = (load_file(folder / "model.safetensors") for folder in (plain, quantised))
    found = gptq.dequantise(packed)
    assert found.keys() == before.keys()
    for name, weight in found.items():
        layer = name.removesuffix(".weight")
        if f"{layer}{gptq.SCALE}" not in packed:
            assert torch.equal(weight, before[name])
            continue
        steps = (weight - before[name]).float().abs() / packed[f"{layer}{gptq.SCALE}"].float()
        assert 0 < steps.mean() < 1
        assert packed[f"{layer}{gptq.PACKED}"].dtype == torch.int32


def test_a_failure_of_llmcompressor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho Traceback >&2; echo ValueError: no memory >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(UserError, match=r"failed \(ValueError: no memory\)\.\n  Use format=fp8"):
        gptq.quantise(tmp_path, [[1, 2]])


def test_without_llama_cpp_a_comparison_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rows=4: .*\n  Install it .*, or leave the comparison out: rows=0"):
        export(folder / "fold0", "gguf", tmp_path / "out", rows=4)


def test_without_llmcompressor_its_requirements_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements/gptq\.txt"):
        export(folder / "fold0", "gptq8", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_adapters_of_a_cross_validation_are_averaged(folder: Path, tmp_path: Path) -> None:
    from lmsys_unsloth.cli import evaluation

    members = [member(folder, f"fold{fold}") for fold in range(FOLDS)]
    evaluation.evaluate_runs(members, Run(tmp_path / "cv"))
    Run(tmp_path / "cv").describe(members[0].config, "python eval.py")
    facts = export(tmp_path / "cv", "merged16", tmp_path / "out", force=True)
    assert facts.runs == [f"fold{fold}" for fold in range(FOLDS)]
    assert facts.agreement is not None and facts.agreement.largest_difference < BFLOAT16


def test_the_card_has_scores_and_commands_and_no_text_of_a_row(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    text = (tmp_path / "copy" / "train.csv").read_text()
    first = next(iter(rows_of(folder))).prompts[0]
    (tmp_path / "copy" / "train.csv").write_text(text.replace(json.dumps(first)[1:-1], SECRET))
    run = Run(tmp_path / "copy" / "fold0")
    export(run.path, "adapter", tmp_path / "out", rows=0)
    card = (tmp_path / "out" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    scores = run.metrics_description()
    assert metadata["library_name"] == "peft" and metadata["base_model"]
    found = metadata["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert found == pytest.approx(scores["log_loss"], abs=1e-4)
    assert run.data_description()["fingerprint"] in card and "python train.py" in card
    assert "`form_offset.json` holds a logistic regression" in card
    assert "was not compared" in card and (tmp_path / "out" / "reliability.png").is_file()
    texts = [t for row in rows_of(folder) for t in (*row.prompts, *row.responses_a) if len(t) > 20]
    written = "".join(f.read_text(errors="replace") for f in (tmp_path / "out").iterdir())
    assert texts and not any(text in written for text in texts) and str(tmp_path) not in card


def test_an_export_that_moves_log_loss_is_not_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Agreement, "agrees", False)
    words = [f"run={folder / 'fold0'}", "format=adapter", f"out={tmp_path / 'out'}"]
    assert main(words) == 2
    assert "was not kept" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert not [f for f in tmp_path.iterdir()]
    assert main([*words, "force=true"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=onnx"], "must be one of adapter"),
        (["format=merged16", "type=f16"], "is for format=gguf"),
        (["format=adapter", "out=model"], "exists and is no export folder"),
        (["format=adapter", "run=model"], "not a run directory"),
        (["format=adapter", "speed=high"], "speed: no such argument"),
    ],
)
def test_mistakes_are_explained(
    folder: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    assert main(["run=fold0", "out=new", *words]) == 2
    assert message in capsys.readouterr().err and not (folder / "new").exists()


@needs_llama
def test_a_folder_of_another_model_is_named(folder: Path, tmp_path: Path) -> None:
    export(folder / "fold0", "gguf", tmp_path / "out", type="f32", rows=0)
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    save_tiny_llama(tmp_path / "other")
    shutil.copyfile(tmp_path / "out" / "model.gguf", tmp_path / "other" / "model.gguf")
    tokenizer = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = "ĠA", "ĠB"
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "other" / "export.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="belongs to another model"):
        Predictor.load(tmp_path / "other").predict_comparisons(rows_of(folder))


def test_only_a_clear_change_of_log_loss_counts(folder: Path) -> None:
    rows = rows_of(folder) * 20
    p = np.full((len(rows), 3), 1 / 3)
    labels = np.array([row.label for row in rows])
    noise = np.random.default_rng(0).normal(0, 0.02, len(rows))
    shifted, worse = p.copy(), p.copy()
    shifted[np.arange(len(rows)), labels] += noise
    worse[np.arange(len(rows)), labels] -= 0.02
    for other, agrees in ((shifted, True), (worse, False)):
        other /= other.sum(axis=1, keepdims=True)
        found = differences.compare(p.astype(np.float32), other.astype(np.float32), rows)
        assert found.agrees is agrees and found.rows == len(rows)
        assert found.mean_difference == pytest.approx(np.abs(other - p).mean(), abs=1e-6)
