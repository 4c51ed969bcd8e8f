"""What a launcher's environment means, before processes talk to each other."""

from __future__ import annotations

import os

import pytest

from lmsys_unsloth.core import launcher, ranks
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
    launcher.see_one_gpu(local_rank)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_more_processes_than_named_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError, match=r"process 2 of this machine has no GPU.*\n.*2 processes"):
        launcher.see_one_gpu(2)


def test_one_process_of_a_launcher_is_an_ordinary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    others = {"ACCELERATE_MIXED_PRECISION": "bf16", "TORCHELASTIC_RUN_ID": "none"}
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    assert launcher.join() is ranks.current() and ranks.current().size == 1
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", *others} & os.environ.keys()


def test_half_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"WORLD_SIZE=2 .* RANK, MASTER_ADDR.* is not set"):
        launcher.join()


def test_sharded_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="configured for FSDP"):
        launcher.join()
