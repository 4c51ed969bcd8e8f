"""``engine=vllm`` gives the native probabilities, by a stand-in for vLLM that takes vLLM's own arguments.

vLLM needs other versions of torch and transformers than the project; where it is installed, the last test
runs it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from trained_runs import member

from lmsys_unsloth import Predictor
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.export.checking import validation_rows
from lmsys_unsloth.export.export import export
from lmsys_unsloth.predict import engine_check
from lmsys_unsloth.predict.engines import vllm_engine

pytestmark = pytest.mark.slow

FLOAT32 = 256 * 2.0**-23
"""Both compute in float32, in another order: some hundred roundings of numbers below 1."""
BFLOAT16 = 2 * 2.0**-8
"""Merged weights are rounded to bfloat16; probabilities are below 1."""
PLAIN = ("model.load_in_4bit=false", "model.dtype=float32")
"""vLLM on a CPU applies adapters to plain weights."""


class LLM:
    """Computes what ``vllm.LLM.generate`` returns for one token with ``logprob_token_ids``."""

    made: list[LLM]
    failure: Exception | None
    without_logprobs: bool

    def __init__(
        self, *, model: str, trust_remote_code: bool, load_format: str, quantization: str | None, dtype: str,
        max_model_len: int, enable_prefix_caching: bool, enforce_eager: bool, gpu_memory_utilization: float,
        enable_lora: bool = False, max_lora_rank: int = 16, max_loras: int = 1,
    ) -> None:  # fmt: skip
        if LLM.failure is not None:
            raise LLM.failure
        assert not trust_remote_code and load_format == "safetensors" and quantization is None
        self.folder, self.rank, self.length, self.adapters = model, max_lora_rank, max_model_len, enable_lora
        self.requests: list[Any] = []
        LLM.made.append(self)

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling_params: SimpleNamespace, *, use_tqdm: bool,
        lora_request: SimpleNamespace | None,
    ) -> list[Any]:  # fmt: skip
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        self.requests.append(lora_request)
        model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        if lora_request is not None:
            assert self.adapters
            model = PeftModel.from_pretrained(model, lora_request.lora_path)
        outputs = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            assert len(ids) + sampling_params.max_tokens <= self.length
            with torch.no_grad():
                found = model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            wanted = {i: SimpleNamespace(logprob=float(found[i])) for i in sampling_params.logprob_token_ids}
            wanted[int(found.argmax())] = SimpleNamespace(logprob=float(found.max()))  # vLLM adds its choice
            completion = SimpleNamespace(logprobs=None if LLM.without_logprobs else [wanted])
            outputs.append(SimpleNamespace(outputs=[completion]))
        return outputs


def sampling_params(
    *, max_tokens: int, temperature: float, logprob_token_ids: list[int], detokenize: bool
) -> SimpleNamespace:
    return SimpleNamespace(max_tokens=max_tokens, logprob_token_ids=logprob_token_ids)


def lora_request(lora_name: str, lora_int_id: int, lora_path: str) -> SimpleNamespace:
    assert lora_int_id > 0
    return SimpleNamespace(lora_name=lora_name, lora_int_id=lora_int_id, lora_path=lora_path)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LLM]]:
    module, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    module.__dict__.update(LLM=LLM, SamplingParams=sampling_params)
    request.__dict__.update(LoRARequest=lora_request)
    for name, stand_in in {
        "vllm": module,
        "vllm.lora": ModuleType("vllm.lora"),
        "vllm.lora.request": request,
    }.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    LLM.made, LLM.failure, LLM.without_logprobs = [], None, False
    vllm_engine._load.cache_clear()
    yield LLM
    vllm_engine._load.cache_clear()


def probabilities(folder: Path, *changes: str, runs: Sequence[str] = ("fold0",)) -> np.ndarray:
    rows = validation_rows(Run(folder / "fold0"), member(folder).config, 6)
    return Predictor.load([folder / run for run in runs], *changes).predict_comparisons(rows)


def test_adapters_over_the_base_model_give_the_native_probabilities(folder: Path, vllm: type[LLM]) -> None:
    found = probabilities(folder, *PLAIN, "engine.kind=vllm")
    np.testing.assert_allclose(found, probabilities(folder, *PLAIN), atol=FLOAT32)
    assert [llm.rank for llm in vllm.made] == [16] and vllm.made[0].folder == str(folder / "model")


def test_runs_with_the_same_base_model_share_it(folder: Path, vllm: type[LLM]) -> None:
    runs = ("fold0", "fold1")
    found = probabilities(folder, *PLAIN, "engine.kind=vllm", runs=runs)
    np.testing.assert_allclose(found, probabilities(folder, *PLAIN, runs=runs), atol=FLOAT32)
    [llm] = vllm.made
    assert len({request.lora_int_id for request in llm.requests}) == 2


def test_an_export_is_computed_without_adapters(folder: Path, vllm: type[LLM], tmp_path: Path) -> None:
    export(folder / "fold0", "merged16", tmp_path / "merged", rows=0)
    found = probabilities(folder, "engine.kind=vllm", f"engine.path={tmp_path / 'merged'}")
    np.testing.assert_allclose(found, probabilities(folder), atol=BFLOAT16)
    assert set(vllm.made[0].requests) == {None} and not vllm.made[0].adapters


def test_four_bit_weights_are_named_where_vllm_has_none(
    folder: Path, vllm: type[LLM], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    probabilities(folder, "engine.kind=vllm")
    assert "format=merged16" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((PLAIN[0], "lora.kind=full", "lora.use_dora=true"), r"were trained\n.*DoRA\n.*format=merged16"),
        (("head.kind=lm_trained",), r"not among the adapters\n.*format=merged16"),
        (("head.kind=linear",), r"is a classifier of its own\.\n.*format=classifier"),
        (("engine.path=missing",), "a folder with config.json"),
    ],
    ids=["weights", "rows", "classifier", "export"],
)
def test_what_vllm_can_not_compute_is_refused(
    folder: Path, vllm: type[LLM], changes: Sequence[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        probabilities(folder, "engine.kind=vllm", *changes)
    assert vllm.made == []


def test_a_version_that_ignores_the_answers_is_named(folder: Path, vllm: type[LLM]) -> None:
    vllm.without_logprobs = True
    with pytest.raises(UserError, match=r"requirements/vllm\.txt"):
        probabilities(folder, *PLAIN, "engine.kind=vllm")


def test_a_model_that_does_not_fit_is_named(folder: Path, vllm: type[LLM]) -> None:
    vllm.failure = ValueError("No available memory for the cache blocks.\nmore")
    with pytest.raises(
        UserError, match=r"No available memory for the cache blocks\. more\n  Lower engine.memory"
    ):
        probabilities(folder, *PLAIN, "engine.kind=vllm")


def test_without_vllm_its_environment_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install -r requirements/vllm\.txt"):
        probabilities(folder, "engine.kind=vllm")


def test_where_unsloth_is_missing_stored_predictions_are_the_reference(
    folder: Path, vllm: type[LLM], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    export(folder / "fold0", "merged16", tmp_path / "merged", rows=0)
    monkeypatch.setattr(engine_check, "find_spec", lambda name: None)
    words = ("engine.kind=vllm", f"engine.path={tmp_path / 'merged'}", "engine.check=5")
    scored = member(folder, "fold0", *words)
    assert engine_check.check_engine(scored.config, [scored.run], Run(tmp_path))
    assert "compared with the predictions that the run stored on 5 rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "engine_check.json").read_text())["largest_difference"] < BFLOAT16
    with pytest.raises(UserError, match="the run stored no predictions of 5 of these 5 rows"):
        engine_check.check_engine(scored.config, [], Run(tmp_path))


@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs vLLM, which has its own environment"
)
def test_vllm_gives_the_native_probabilities(folder: Path) -> None:
    found = probabilities(folder, *PLAIN, "engine.kind=vllm")
    np.testing.assert_allclose(found, probabilities(folder, *PLAIN), atol=1e-4)  # kernels of its own
