"""Trains a tiny model in processes that are killed: a process that test_kills.py starts.

    python tests/train/kills.py FOLDER MODEL

Starting Python with all libraries takes most of the time of a small training, so this process imports them
once and forks: each child is one ``python train.py …``. Prints as JSON what happened to each, and the number
of runs.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "data.rows=60", "data.folds=3", "train.max_steps=6", "train.rows_per_step=4",
    "train.save_every_minutes=0", "train.evaluate_every=2", "train.early_stopping_share=0.3",
    "model.first_layer=0", "prompt=v2", "model.load_in_4bit=false", "model.dtype=float32",
]  # fmt: skip
EVENTS, MOMENTS = 32, 8
"""Number of kills at calls that write, spread over an undisturbed run, and of kills at points in time."""


def import_everything() -> None:
    sys.path.insert(0, str(ROOT))
    from lmsys_unsloth.model.unsloth_import import import_unsloth

    import_unsloth()
    import matplotlib.pyplot  # noqa: F401
    import sklearn.linear_model  # noqa: F401

    import lmsys_unsloth.cli.prepare
    import lmsys_unsloth.evaluate.scoring
    import lmsys_unsloth.report.results
    import lmsys_unsloth.report.tracking
    import lmsys_unsloth.train.training  # noqa: F401


def count_writes(kill_at: int | None, log: Path) -> None:
    """Count calls that change files; before, within or after call ``kill_at`` kill this process."""
    import shutil

    import torch

    from lmsys_unsloth.model import trained_weights

    calls = 0

    def counted(
        function: Callable[..., Any], written: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            log.write_text(str(calls))
            if calls != kill_at:
                return function(*arguments, **named)
            if calls % 3 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            function(*arguments, **named)
            if calls % 3 == 1 and written is not None:  # as if half of the file had been written
                file = Path(written(*arguments))
                os.truncate(file, file.stat().st_size // 2)
            return os.kill(os.getpid(), signal.SIGKILL)

        return call

    for module, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (os, "mkdir"), (shutil, "rmtree")):
        setattr(module, name, counted(getattr(module, name)))
    trained_weights.save_file = counted(trained_weights.save_file, lambda _, file: file)
    torch.save = counted(torch.save, lambda _, file: file)


def attempt(
    arguments: list[str], log: Path, *, event: int | None = None, seconds: float | None = None
) -> int:
    """Run ``train.py`` in a child, and return its wait status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.stdout = sys.stderr = log.with_suffix(".log").open("a", buffering=1)
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stdout.fileno(), 2)
            count_writes(event, log)
            sys.argv = [str(ROOT / "train.py"), *arguments]
            runpy.run_path(sys.argv[0], run_name="__main__")
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main(folder: Path, model: str) -> None:
    import_everything()
    log = folder / "writes"
    settings = [*SETTINGS, f"model.path={model}"]
    started = time.monotonic()
    assert attempt([*settings, f"hydra.run.dir={folder / 'undisturbed'}"], log) == 0
    took, writes = time.monotonic() - started, int(log.read_text())
    kills: list[dict[str, Any]] = [{"event": 1 + writes * n // EVENTS} for n in range(EVENTS)]
    for n in range(MOMENTS):
        kills.insert(3 * n, {"seconds": took * (n + 0.5) / MOMENTS})
    done, runs = [], 0
    while kills:
        run = folder / f"run{runs}"
        runs += 1
        status = -1
        while status != 0:
            again = (
                [f"resume={run}"] if (run / "config.yaml").is_file() else [*settings, f"hydra.run.dir={run}"]
            )
            kill = kills.pop(0) if kills else {}
            status = attempt(again, log, **kill)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            done.append({**kill, "killed": killed, "failed": status != 0 and not killed})
            if done[-1]["failed"]:
                print(log.with_suffix(".log").read_text()[-3000:], file=sys.stderr)
                break
    print(json.dumps({"attempts": done, "runs": runs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
