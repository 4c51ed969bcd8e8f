"""Other engines give the same probabilities as this project's forward pass, or say why they can't."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback import serving
from trained_runs import member

from lmsys_unsloth import Predictor
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.export.checking import validation_rows
from lmsys_unsloth.export.export import export
from lmsys_unsloth.predict.engine_check import check_engine

pytestmark = pytest.mark.slow

BFLOAT16 = 2 * 2.0**-8
"""Merged weights are rounded to bfloat16; probabilities are below 1."""
HAS_LLAMA = importlib.util.find_spec("llama_cpp") is not None
needs_llama = pytest.mark.skipif(not HAS_LLAMA, reason="needs llama-cpp-python, which has to be compiled")


@pytest.fixture(scope="module")
def merged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines") / "merged"
    export(folder / "fold0", "merged16", path, rows=0)
    return path


@pytest.fixture(scope="module")
def gguf(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines") / "gguf"
    export(folder / "fold0", "gguf", path, type="f32", rows=0)
    return path


class Server:
    """A server with OpenAI's completions interface around a model, which can be told to misbehave."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.failures = 0
        self.change: Callable[[dict[str, float]], Any] = lambda tokens: {"top_logprobs": [tokens]}
        self.lock = threading.Lock()

    def answer(self, method: str, path: str, content: bytes) -> tuple[int, Any]:
        if method == "GET":
            return 200, {"data": [{"id": "judge"}]}
        body = json.loads(content)
        with self.lock:
            self.requests.append(body)
            if self.failures:
                self.failures -= 1
                return 503, {"error": "busy"}
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([body["prompt"]])).logits[0, -1]
        found = logits.log_softmax(-1)
        # A random model does not put the answers on top, as a trained one does.
        top = [49, 50, 36521, 330, 389, 47832, *found.topk(body["logprobs"]).indices.tolist()]
        tokens = {f"token_id:{i}": float(found[i]) for i in list(dict.fromkeys(top))[: body["logprobs"]]}
        return 200, {"choices": [{"logprobs": self.change(tokens)}]}


@pytest.fixture
def server(merged: Path) -> Iterator[Server]:
    made = Server(merged)
    with serving(made.answer) as address:
        made.url = f"{address}/v1"
        yield made


def probabilities(folder: Path, *changes: str) -> np.ndarray:
    rows = validation_rows(Run(folder / "fold0"), member(folder).config, 6)
    return Predictor.load(folder / "fold0", *changes).predict_comparisons(rows)


def test_transformers_is_the_reference(folder: Path) -> None:
    np.testing.assert_allclose(
        probabilities(folder, "engine.kind=transformers"), probabilities(folder), atol=BFLOAT16
    )


def test_a_server_gives_the_same_probabilities_with_one_token_for_each_row(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.failures = 2
    words = ("engine.kind=openai", f"engine.url={server.url}", "engine.concurrency=3")
    found = probabilities(folder, *words)
    np.testing.assert_allclose(found, probabilities(folder), atol=BFLOAT16)
    assert {r["max_tokens"] for r in server.requests} == {1} and {r["model"] for r in server.requests} == {
        "judge"
    }
    assert len(server.requests) == 2 * 6 + 2  # each row in both orders; two were repeated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens: None, "returns no log-probabilities"),
        (lambda tokens: {"top_logprobs": [dict(list(tokens.items())[:3])]}, "returned 3 tokens, but"),
        (
            lambda tokens: {"top_logprobs": [{f"token_id:{1000 + n}": -1.0 for n in range(20)}]},
            "none of the answers",
        ),
        (lambda tokens: {"top_logprobs": [{" ": -1.0, "Tie"[:1]: -1.0, **{str(n): -2.0 for n in range(20)}}]},
         "several tokens there|none of the answers"),
    ],
    ids=["none", "fewer", "others", "parts"],
)  # fmt: skip
def test_a_server_that_lacks_what_is_needed_is_named(
    folder: Path, server: Server, change: Any, message: str
) -> None:
    server.change = change
    with pytest.raises(UserError, match=message):
        probabilities(folder, "engine.kind=openai", f"engine.url={server.url}", "engine.retries=0")


def test_a_server_that_does_not_answer_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="Start the server"):
        probabilities(folder, "engine.kind=openai", "engine.url=http://127.0.0.1:9/v1", "engine.retries=0")


def test_a_check_compares_an_engine_with_the_reference(
    folder: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("engine.kind=openai", f"engine.url={server.url}", "engine.check=5")
    scored = member(folder, "fold0", *words)
    assert check_engine(scored.config, [scored.run], Run(tmp_path))
    assert "openai compared with transformers on 5 rows" in capsys.readouterr().out
    stored = json.loads((tmp_path / "engine_check.json").read_text())
    assert stored["agrees"] is True and stored["largest_difference"] < BFLOAT16
    with pytest.raises(UserError, match="name one run=RUN"):
        check_engine(scored.config, [scored.run, scored.run], Run(tmp_path))


def test_a_gguf_file_holds_the_merged_weights_as_transformers_reads_them(merged: Path, gguf: Path) -> None:
    """transformers' own reader reverses llama.cpp's order of rows."""
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(gguf, gguf_file="model.gguf", dtype=torch.float32)
    expected = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    stored = found.state_dict()
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(stored[name], weight, rtol=0, atol=0, msg=name)


@needs_llama
def test_llama_cpp_gives_the_same_probabilities(folder: Path, gguf: Path) -> None:
    words = ("engine.kind=llama_cpp", f"engine.path={gguf / 'model.gguf'}")
    np.testing.assert_allclose(probabilities(folder, *words), probabilities(folder), atol=BFLOAT16)
