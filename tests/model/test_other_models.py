"""Models that the fast decoder does not know give transformers' numbers, or are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import config, lora_config, model_config, train_config
from safetensors.torch import load_file, save_file
from tiny import (
    VOCABULARY,
    probabilities,
    random_rows,
    reference,
    save_word_tokenizer,
    tolerance,
    with_adapters,
)
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import loading, smollm2, trained_weights
from lmsys_unsloth.model.decoder import ReferenceDecoder
from lmsys_unsloth.model.families.model_folder import require_supported
from lmsys_unsloth.model.parity import choose_decoder

KINDS = ("gpt_neox", "opt", "gpt2")
TARGETS = {"gpt_neox": ["query_key_value"], "opt": ["q_proj", "fc1"], "gpt2": ["c_attn", "c_fc"]}


def made(kind: str, vocabulary: int = VOCABULARY, positions: int = 256, **changes: Any) -> Any:
    """A tiny random model; its weights are larger than usual, so that mistakes make a visible difference."""
    torch.manual_seed(0)
    common = dict(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=positions, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, **changes,
    )  # fmt: skip
    model: nn.Module
    if kind == "gpt_neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**common))
    elif kind == "opt":
        model = OPTForCausalLM(OPTConfig(**common, ffn_dim=128, word_embed_proj_dim=64))
    elif kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary, n_embd=64, n_layer=2, n_head=4, n_positions=positions, bos_token_id=1,
                eos_token_id=2,
            )
        )  # fmt: skip
    elif kind == "phi":
        model = PhiForCausalLM(PhiConfig(**common))
    else:
        model = GraniteForCausalLM(GraniteConfig(**common, logits_scaling=8.0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    return model.eval()


def saved(kind: str, folder: Path, **changes: Any) -> Path:
    made(kind, **changes).save_pretrained(folder)
    save_word_tokenizer(folder, VOCABULARY)
    return folder


def loaded(folder: Path, **changes: Any) -> Any:
    return loading.load_model(model_config(folder, **changes)).eval()


@pytest.mark.numeric
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_and_gradients_equal_transformers(kind: str, tmp_path: Path) -> None:
    model, rows = loaded(saved(kind, tmp_path)), random_rows()
    expected = torch.stack([reference(made(kind), ids) for ids in rows])
    torch.testing.assert_close(
        probabilities(model, rows, ReferenceDecoder), expected, atol=tolerance(), rtol=0
    )
    adapted = with_adapters(model, target_modules=TARGETS[kind])
    changed = torch.stack([reference(adapted, ids) for ids in rows])
    assert (changed - expected).abs().max() > 1e-3
    torch.testing.assert_close(
        probabilities(adapted, rows, ReferenceDecoder), changed, atol=tolerance(), rtol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_decoder_is_refused_in_one_line(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: Any = [type("Row", (), {"input_ids": ids})() for ids in random_rows()]
    with caplog.at_level("INFO"):
        decoder = choose_decoder(loaded(saved(kind, tmp_path)), rows, fast=True, training=True)
    assert isinstance(decoder, ReferenceDecoder)
    (line,) = [record.message for record in caplog.records if "fast" in record.message]
    assert line.startswith(f"train.fast is not used: the fast decoder does not know models of type {kind};")


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_recomputes_every_layer(kind: str, tmp_path: Path) -> None:
    model = with_adapters(loaded(saved(kind, tmp_path)), target_modules=TARGETS[kind]).train()
    decoder = ReferenceDecoder(model)
    row = torch.arange(3, 13)
    gradients = []
    for decoder.checkpointed in (False, True):
        model.zero_grad()
        torch.manual_seed(0)  # of dropout
        decoder(row, [10]).square().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    assert len(layers) >= 2
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_four_bit_weights_are_loaded(tmp_path: Path) -> None:
    model = loaded(saved("gpt_neox", tmp_path), load_in_4bit=True, resident="4bit")
    assert type(model.base_model.layers[0].attention.query_key_value).__name__ == "Linear4bit"
    assert probabilities(model, random_rows(), ReferenceDecoder).isfinite().all()


def test_layers_that_do_not_exist_are_named_with_those_that_do(tmp_path: Path) -> None:
    model = loaded(saved("gpt2", tmp_path))
    with pytest.raises(
        UserError, match=r"no linear layers q_proj, up_proj; set .*target_modules=\[c_attn,c_fc,c_proj\]"
    ):
        trained_weights.make_trainable(
            model, lora_config(target_modules=["q_proj", "up_proj", "c_fc"]), train_config(), seed=0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_layers_themselves_can_be_trained(kind: str, tmp_path: Path) -> None:
    settings = lora_config(kind="full", first_layer=1, target_modules=TARGETS[kind])
    model = trained_weights.make_trainable(loaded(saved(kind, tmp_path)), settings, train_config(), seed=0)
    names = [name.split(".")[-2] for name in trained_weights.trained_parameters(model)]
    assert sorted(names) == sorted(TARGETS[kind])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("phi", "its LM head has a bias"), ("granite", r"its own logits differ by 7\.0e.00")],
)
def test_heads_that_are_more_than_a_matrix_are_refused(kind: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"model_type = {kind}: .*{reason}; choose a model of another family"):
        loaded(saved(kind, tmp_path))


def test_a_head_that_is_not_stored_is_refused(tmp_path: Path) -> None:
    file = saved("gpt_neox", tmp_path) / "model.safetensors"
    stored = load_file(file)
    del stored["embed_out.weight"]
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="the LM head or the embeddings are not among the weights"):
        loaded(tmp_path)


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    (
        {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}},
        r"model_type = own: not a causal .* transformers 5.*with it .auto_map. is not run",
    ),
    ({"model_type": "t5"}, "model_type = t5: not a causal language model of transformers"),
    ({"model_type": "gemma3", "vision_config": {}}, "reads images too; choose a text-only model"),
    *(
        (
            {"model_type": "llama", "quantization_config": {"quant_method": method}},
            f"quant_method = {method}: bitsandbytes does not read this format; use the 16-bit weights",
        )
        for method in ("gptq", "awq", "fp8", "compressed-tensors", "mxfp4")
    ),
]


@pytest.mark.parametrize(("settings", "problem"), UNSUPPORTED)
def test_what_can_not_be_loaded_is_refused_before_the_tokenizer(
    settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"(?s)model=tiny can't be used:.*{problem}"):
        loading.load_tokenizer(model_config(tmp_path))


def test_every_reason_is_listed() -> None:
    with pytest.raises(UserError, match=r"(?s)not a causal language model.*does not read this format"):
        require_supported({"model_type": "own", "quantization_config": {"quant_method": "awq"}}, "mine")


@pytest.mark.parametrize("method", [{"quant_method": "bitsandbytes"}, {"load_in_4bit": True}, None])
def test_weights_that_bitsandbytes_made_are_accepted(method: dict[str, Any] | None) -> None:
    require_supported({"model_type": "qwen3", "quantization_config": method}, "mine")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_another_model_trains_and_predicts(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lmsys_unsloth.cli.prepare import prepare_training
    from lmsys_unsloth.evaluate.scoring import predict_rows
    from lmsys_unsloth.report.tracking import NoTracker
    from lmsys_unsloth.train.training import train_or_load

    folder, run = tmp_path / f"tiny-{kind}", Run(tmp_path / "run")
    made(kind, vocabulary=49152, positions=8192).save_pretrained(folder)
    smollm2.tokenizer().save_pretrained(folder)
    settings = config(
        "model=auto", f"model.path={folder}", "model.dtype=float32", "data.rows=30", "data.folds=3",
        "debug.train_rows=12", "debug.validation_rows=2", "train.max_steps=2", "train.warmup_ratio=0",
        f"lora.target_modules=[{','.join(TARGETS[kind])}]",
    )  # fmt: skip
    run.describe(settings, "python train.py")
    prepared = prepare_training(settings, run)
    with caplog.at_level("WARNING"):
        model = train_or_load(settings, run, prepared, NoTracker())
        predicted, _ = predict_rows(model, prepared, settings)
    assert all(math.isfinite(step["loss"]) for step in run.learning_curve()) and len(predicted) == 2
    assert json.loads(run.training.read_text())["fast"] is False
    warnings = [record.message for record in caplog.records if "fast decoder" in record.message]
    assert set(warnings) == {
        f"train.fast is not used: the fast decoder does not know models of type {kind}; the model's own "
        "forward pass is used"
    }
    again, _ = predict_rows(train_or_load(settings, run, prepared, NoTracker()), prepared, settings)
    torch.testing.assert_close(
        torch.tensor(again.probabilities), torch.tensor(predicted.probabilities), atol=tolerance(), rtol=0
    )
