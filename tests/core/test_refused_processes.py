"""Processes that can't work together, and folders that can't be written, are named."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import config

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core import joined_ranks, launcher
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.joined_ranks import JoinedRanks
from lmsys_unsloth.evaluate.passes.partial_scores import ScoredBatches


def test_ranks_with_and_without_gpu_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    group = object.__new__(JoinedRanks)
    monkeypatch.setattr(group, "size", 3, raising=False)
    monkeypatch.setattr(JoinedRanks, "gather", lambda self, own: [("H100", "0"), None, None])
    monkeypatch.setattr(joined_ranks, "_describe_gpu", lambda: None)
    with pytest.raises(UserError, match=r"3 processes were started, but rank 1, 2 found no GPU.\n  Start as"):
        group.check_gpus()


def test_processes_that_do_not_find_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("timed out")

    monkeypatch.setattr(launcher, "JoinedRanks", fail)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"do not find each other: timed out\n.*MASTER_ADDR=host"):
        launcher._find_others()


def test_a_run_directory_in_use_is_refused(tmp_path: Path) -> None:
    from filelock import FileLock

    from lmsys_unsloth.config import run_directory

    with (
        FileLock(tmp_path / run_directory._LOCK),
        pytest.raises(UserError, match="another process is training or scoring"),
        Run(tmp_path).locked(),
    ):
        pass


def test_a_full_disk_while_scoring_is_named(tmp_path: Path) -> None:
    class Full:
        name = "scores.jsonl"

        def write(self, line: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    with ScoredBatches(tmp_path, "own") as batches:
        batches._file.close()
        file: Any = Full()
        batches._file = file
        with pytest.raises(UserError, match=r"scores.jsonl: No space left on device; free space and resume"):
            batches.append([0], torch.zeros(1, 3))


def test_a_folder_for_scores_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="free space, or make the folder writable"):
        ScoredBatches(tmp_path / "file" / "scores", "own")


def test_settings_of_another_version_are_named_by_pseudo(tmp_path: Path) -> None:
    from lmsys_unsloth.pseudo import _scored_rows

    run = Run(tmp_path)
    run.describe(config(), "python eval.py")
    run.config.write_text("data: {unknown: 1}\n")
    with pytest.raises(UserError, match="its data section is not of this version; score the file again"):
        _scored_rows(run)
