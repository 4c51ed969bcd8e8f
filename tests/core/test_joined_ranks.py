"""What a launcher's environment means, before processes talk to each other."""

from __future__ import annotations

import os

import pytest

from lmsys_unsloth.core import joined_ranks, ranks
from lmsys_unsloth.core.errors import UserError


@pytest.mark.parametrize(
    ("visible", "local_rank", "seen"),
    [(None, 3, "3"), ("4, 6", 1, "6"), ("4,6", 0, "4"), ("5", 2, "5"), ("", 1, "")],
)
def test_each_rank_sees_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, local_rank: int, seen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")  # so that it is restored in any case
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    joined_ranks.see_one_gpu(local_rank)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_more_processes_than_named_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError, match=r"process 2 of this machine has no GPU.*\n.*2 processes"):
        joined_ranks.see_one_gpu(2)


def test_one_process_of_a_launcher_is_an_ordinary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert joined_ranks.join() is ranks.current() and ranks.current().size == 1
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys()


def test_sharded_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="configured for FSDP"):
        joined_ranks.join()
