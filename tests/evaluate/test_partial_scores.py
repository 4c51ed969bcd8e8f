"""An interrupted scoring goes on where it stopped, and gives what one without an interruption gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import save_tiny_llama
from training_cases import adapted, rows

from lmsys_unsloth.evaluate.passes.logits import answer_logits
from lmsys_unsloth.evaluate.passes.partial_scores import ScoredBatches
from lmsys_unsloth.model.answer_head import AnswerHead
from lmsys_unsloth.model.decoder import FastDecoder

TOKENS = 40


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> FastDecoder:
    return FastDecoder(adapted(save_tiny_llama(tmp_path_factory.mktemp("model"))))


def count_batches(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Sizes of the batches that are computed; KeyboardInterrupt in place of the next one."""
    computed: list[int] = []
    ordinary = AnswerHead.logits

    def counted(head: AnswerHead, decoder: Any, batch: Any) -> torch.Tensor:
        if len(computed) == stop_after:
            raise KeyboardInterrupt
        computed.append(len(batch))
        return ordinary(head, decoder, batch)

    monkeypatch.setattr(AnswerHead, "logits", counted)
    return computed


def interrupt(decoder: FastDecoder, folder: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    with monkeypatch.context() as patch:
        count_batches(patch, stop_after=after)
        with pytest.raises(KeyboardInterrupt), ScoredBatches(folder, "forward-key") as scored:
            answer_logits(decoder, rows(), TOKENS, scored)


def test_only_batches_that_are_missing_are_computed(
    decoder: FastDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = count_batches(monkeypatch)
    expected = answer_logits(decoder, rows(), TOKENS)
    sizes = computed.copy()
    interrupt(decoder, tmp_path, monkeypatch, after=2)
    computed.clear()
    with ScoredBatches(tmp_path, "forward-key") as scored:
        found = answer_logits(decoder, rows(), TOKENS, scored)
    assert torch.equal(found, expected) and computed == sizes[2:]
    computed.clear()
    with ScoredBatches(tmp_path, "forward-key") as scored:
        assert torch.equal(answer_logits(decoder, rows(), TOKENS, scored), expected)
    assert not computed


@pytest.mark.parametrize("damage", [b'{"rows": [0, 1], "log', b"\0" * 30 + b"\n", b'{"rows": [0]\n'])
def test_a_line_that_was_cut_off_is_computed_again(
    decoder: FastDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    expected = answer_logits(decoder, rows(), TOKENS)
    interrupt(decoder, tmp_path, monkeypatch, after=1)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole + damage)
    for _ in range(2):  # the second time all lines must be found, also those written after the damage
        with ScoredBatches(tmp_path, "forward-key") as scored:
            assert torch.equal(answer_logits(decoder, rows(), TOKENS, scored), expected)
        assert file.read_bytes().startswith(whole + b'{"rows"')


def test_scores_of_other_rows_or_settings_are_not_used(
    decoder: FastDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(decoder, tmp_path, monkeypatch, after=2)
    computed = count_batches(monkeypatch)
    with ScoredBatches(tmp_path, "forward-other") as scored:
        answer_logits(decoder, rows(), TOKENS, scored)
    assert sum(computed) == len(rows())


def test_batches_collated_ahead_are_those_collated_one_by_one(decoder: FastDecoder) -> None:
    together = answer_logits(decoder, rows(), TOKENS)
    alone = torch.cat([answer_logits(decoder, [row], TOKENS) for row in rows()])
    np.testing.assert_allclose(together.numpy(), alone.numpy(), atol=1e-4, rtol=0)
    assert torch.equal(together, answer_logits(decoder, rows(), TOKENS))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from training_cases import adapted, rows
from lmsys_unsloth.evaluate.passes.logits import answer_logits
from lmsys_unsloth.evaluate.passes.partial_scores import ScoredBatches
from lmsys_unsloth.model.decoder import FastDecoder

def killed(rows, tokens, computed):
    if len(Path({folder!r}, "forward-key-0.jsonl").read_text().splitlines()) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

with ScoredBatches(Path({folder!r}), "forward-key") as scored:
    answer_logits(FastDecoder(adapted(Path({model!r}))), rows(), {tokens}, scored, after_batch=killed)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_every_batch_that_it_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = save_tiny_llama(tmp_path / "model"), tmp_path / "scores"
    tests = str(Path(__file__).resolve().parents[1])
    code = KILLED.format(tests=tests, folder=str(folder), model=str(model), tokens=TOKENS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr[-3000:]
    decoder = FastDecoder(adapted(model))
    computed = count_batches(monkeypatch)
    expected = answer_logits(decoder, rows(), TOKENS)
    sizes = computed.copy()
    computed.clear()
    with ScoredBatches(folder, "forward-key") as scored:
        found = answer_logits(decoder, rows(), TOKENS, scored)
    assert torch.equal(found, expected) and computed == sizes[3:]
