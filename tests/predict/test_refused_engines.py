"""What an engine, a source or a server lacks is named with its remedy."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from factories import config
from loopback import serving

from lmsys_unsloth.config.engine_schema import EngineConfig
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.predict.engines.classifier import Classifier
from lmsys_unsloth.predict.engines.engine import open_engine
from lmsys_unsloth.predict.engines.gguf_file import GgufFile
from lmsys_unsloth.predict.engines.server import Server
from lmsys_unsloth.predict.sources import open_source

ENCODER: Any = SimpleNamespace(
    answer_ids=[(5,), (6,), (7,)],
    prompt=SimpleNamespace(max_tokens=8),
    vocabulary=SimpleNamespace(decode=lambda ids: f" {'ABT'[ids[0] - 5]}ie", bos=[]),
    tokenizer=SimpleNamespace(convert_ids_to_tokens=lambda token: f"t{token}"),
)


def settings(**values: Any) -> EngineConfig:
    return config("engine=openai", "engine.url=http://127.0.0.1:9/v1", "engine.retries=0").engine.model_copy(
        update=values
    )


def test_answers_of_several_tokens_need_the_native_engine() -> None:
    encoder: Any = SimpleNamespace(answer_ids=[(5, 6), (6,), (7,)])
    with pytest.raises(UserError, match=r"are the tokens \[\[5, 6\], \[6\], \[7\]\].\n  Use engine=native"):
        open_engine(config("engine=openai", "engine.url=http://127.0.0.1:9/v1"), encoder, None)


def answering(body: Any, status: int = 200) -> Any:
    def answer(method: str, path: str, content: bytes) -> tuple[int, Any]:
        return status, body

    return serving(answer)


@pytest.mark.parametrize(
    ("listed", "message"),
    [({"data": []}, "lists no model; name it: engine.model=NAME"), (["x"], r"does engine.url end in /v1\?")],
    ids=["none", "list"],
)
def test_a_server_that_names_no_model_is_refused(listed: Any, message: str) -> None:
    with answering(listed) as address, pytest.raises(UserError, match=message):
        Server(settings(url=f"{address}/v1"), ENCODER)


def test_a_status_of_the_server_is_shown_with_a_remedy() -> None:
    with (
        answering({"error": "prompt must be a string"}, 400) as address,
        pytest.raises(
            UserError, match=r"status 400: .*\n  If the server does not take token ids, set engine"
        ),
    ):
        Server(settings(url=f"{address}/v1", model="judge"), ENCODER).logits([[1, 2]])


def test_an_answer_that_is_several_tokens_on_the_server_is_named() -> None:
    tokens = {" A": -1.0, "x": -2.0, "y": -3.0}
    body = {"choices": [{"logprobs": {"top_logprobs": [tokens]}}]}
    with answering(body) as address, pytest.raises(UserError, match="' Aie' is several tokens there"):
        Server(settings(url=f"{address}/v1", model="judge", top=3), ENCODER).logits([[1, 2]])


def llama(tokens: Mapping[int, str], failure: Exception | None = None) -> ModuleType:
    """A stand-in for llama-cpp-python that knows tokens only."""

    class Llama:
        def __init__(self, path: str, **_: Any) -> None:
            if failure is not None:
                raise failure
            self._model = SimpleNamespace(token_get_text=tokens.__getitem__)

        def n_vocab(self) -> int:
            return max(tokens) + 1

    module = ModuleType("llama_cpp")
    module.__dict__.update(Llama=Llama, llama_get_logits_ith=None)
    return module


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "needs llama-cpp-python, which is not installed"),
        (llama({5: "t5"}, ValueError("bad magic")), r"can't read it \(bad magic\); export it again"),
        (llama({5: "other", 6: "t6", 7: "t7"}), "token 5, 't5', is 'other' in this file"),
        (llama({5: "t5", 6: "t6"}), "token 7, 't7', is not in this file"),
    ],
    ids=["missing", "damaged", "other token", "fewer tokens"],
)
def test_a_gguf_file_of_another_model_is_refused(
    module: ModuleType | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    with pytest.raises(UserError, match=message):
        GgufFile(Path("model.gguf"), ENCODER)


@pytest.mark.slow
def test_a_folder_that_is_no_classifier_of_the_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a classification checkpoint"):
        Classifier(tmp_path, ENCODER)
    from transformers import LlamaConfig, LlamaForSequenceClassification

    small = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9,
        num_labels=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForSequenceClassification(small).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 2 labels, but the prompt has 3 answers"):
        Classifier(tmp_path, ENCODER)


def run_directory(path: Path) -> Run:
    path.mkdir()
    run = Run(path)
    run.describe(config(), "python train.py")
    return run


def test_sources_that_can_not_predict_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is named"):
        open_source([])
    runs = [run_directory(tmp_path / name).path for name in ("a", "b")]
    with pytest.raises(UserError, match=r"a/adapter, .*b/adapter: missing, so the run has not finished"):
        open_source(runs)
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(UserError, match=r"can't be read \('settings'\); export the run again"):
        open_source(tmp_path)
    stored = {"settings": config().model_dump(mode="json"), "format": "adapter", "calibration": None}
    (tmp_path / "export.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="holds no calibration"):
        open_source(tmp_path, ["eval.stack=true"])


def test_no_responses_can_not_be_ranked() -> None:
    from lmsys_unsloth import Predictor

    with pytest.raises(UserError, match="no responses; give at least one"):
        Predictor([], config(), None).rank("Hi", [])
