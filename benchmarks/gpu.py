"""Llama 3 8B and Gemma 2 9B on one GPU: parity first, then speed and memory of every way to train and score.

    python benchmarks/gpu.py --plan                    # what would run, and how long it takes; needs no GPU
    python benchmarks/gpu.py --models llama3 --ranks 16 --seconds 500 --folder /dev/shm/models
    python benchmarks/gpu.py --tiny                    # the same steps with tiny models, on a CPU too

Weights are random in the real architecture and loaded and quantised as a user's would be. Row lengths are
distributed as in LMSYS's data (log-normal, mean 1,100, at most 3,072 tokens); all variants compute the same
rows. Token ids are random, as the cost does not depend on them. Each engine runs in a separate process, so
that its memory can be measured and libraries that patch others do not affect each other.

``gpu.json`` in ``--out`` holds all results. It is replaced after every variant, and variants that it holds,
measured with the same code on the same GPU, are not measured again: a call that was killed or ran out of
``--seconds`` goes on where it stopped. Out of memory is a result; other failures are tried again. The table
of the newest results is written to ``gpu-DATE.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "benchmarks", "tests")]

import gpu_records
from architectures import SHAPES, flops_per_token, lengths, write_random_model
from engines import Variant, project_variants, this_project
from engines_stock import plain, plain_variants, stock, stock_variants
from gpu_timing import matmul_rate, synchronize

SECONDS_AN_ENGINE = 400
LOADING = 25.0
"""Expected seconds until an engine has imported and loaded everything; without them none is started."""
WRITING = 15.0
"""Expected seconds to write a model; for ``--plan`` only."""
H100 = 700e12
"""Matrix-product rate of an H100 that ``--plan`` assumes; published is 790 for large products."""

ENGINES: dict[str, tuple[Callable[..., list[Variant]], Callable[..., Any]]] = {
    "lmsys_unsloth": (project_variants, this_project),
    "stock": (stock_variants, stock),
    "plain": (plain_variants, plain),
}

Run = tuple[str, int, str]
"""Model, rank and engine."""


def runs(options: argparse.Namespace) -> list[Run]:
    """List what to run, the most important first: plain transformers late and once, other ranks last."""
    first, *others = options.ranks
    compared = [engine for engine in options.engines if engine != "plain"]
    listed = [(model, first, engine) for model in options.models for engine in compared]
    if "plain" in options.engines:
        listed += [(model, first, "plain") for model in options.models]
    return listed + [(m, rank, engine) for rank in others for m in options.models for engine in compared]


def chosen(run: Run, options: argparse.Namespace) -> list[Variant]:
    """List the variants of a run that ``--only`` allows."""
    variants = ENGINES[run[2]][0](run[0], options)
    wanted = [text.lower() for text in options.only]
    return [v for v in variants if not wanted or any(t in f"{v.job} {v.title}".lower() for t in wanted)]


def missing(run: Run, options: argparse.Namespace, *, retry: bool = True) -> list[Variant]:
    """List the variants of a run that have not been tried; if there are none, and with ``retry``, the failed.

    Failed ones come last because they may leave the GPU unusable, which ends the process.
    """
    shared = gpu_records.describe(options, *run)
    tried = {
        (record["job"], record["variant"]): gpu_records.is_finished(record)
        for record in gpu_records.read(options.out / "gpu.json")
        if all(record.get(key) == value for key, value in shared.items() if key != "date")
    }
    variants = chosen(run, options)
    untried = [v for v in variants if (v.job, v.title) not in tried]
    return untried or [v for v in variants if retry and not tried[v.job, v.title]]


def plan(options: argparse.Namespace) -> str:
    """Return a Markdown table of all variants with the seconds that they are expected to take on an H100."""
    lines = ["| model | r | engine | job | variant | seconds | total |", "|---|---|---|---|---|---|---|"]
    total, tokens, written = 0.0, sum(lengths(options)), set()

    def line(run: Run, job: str, title: str, seconds: float) -> None:
        nonlocal total
        total += seconds
        lines.append(f"| {run[0]} | {run[1]} | {run[2]} | {job} | {title} | {seconds:.0f} | {total:.0f} |")

    for run in runs(options):
        variants = chosen(run, options)
        if variants and run[0] not in written:
            written.add(run[0])
            line(run, "", "writing the model", WRITING)
        if variants:
            line(run, "", "imports and loading", LOADING)
        for v in variants:
            seconds = v.seconds
            if v.share:
                flops = flops_per_token(run[0], options, run[1], training=v.job == "training")
                seconds += 2 * tokens * flops / (H100 * v.share)
            line(run, v.job, v.title, seconds)
    return "\n".join(lines) + f"\n\n{total / 60:.0f} of 45 minutes of one H100 ({tokens:,} tokens a pass)\n"


def measure_engine(options: argparse.Namespace) -> None:
    """Measure the missing variants of one engine and record each at once; runs in a process of its own."""
    run: Run = (options.models[0], options.ranks[0], options.engine)
    shared = gpu_records.describe(options, *run)
    each = lengths(options)
    shared |= {"matmul_tflops": options.rate / 1e12, "mean_length": sum(each) / len(each)}
    wanted = missing(run, options)
    say(run, f"loading for {len(wanted)} variants")
    for variant, measure in ENGINES[run[2]][1](run[0], options.folder, run[1], wanted, options):
        if time.time() > options.deadline:
            say(run, "no time is left; call again to go on")
            return
        say(run, f"{variant.job}: {variant.title} …")
        record = {**shared, "job": variant.job, "variant": variant.title}
        if variant.job != "parity":
            record["bound"] = options.rate / flops_per_token(
                run[0], options, run[1], training=variant.job == "training"
            )
        record |= attempt(measure)
        gpu_records.add(options.out / "gpu.json", record)
        results = {key: record[key] for key in record if key not in shared and key not in ("job", "variant")}
        say(run, f"{variant.job}: {variant.title}: {results}"[:500])
        synchronize()  # raises, and so ends this process, after an error that leaves the GPU unusable


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers, or the error: a failing variant must not lose the others."""
    from lmsys_unsloth.model import memory

    try:
        return measure()
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return {"failed": text.splitlines()[0][:300], "out_of_memory": memory.is_out_of_memory(error)}


def say(run: Run, text: str) -> None:
    """Print a line of progress that a killed process has shown."""
    print(f"{time.strftime('%H:%M:%S')} {run[0]} r={run[1]} {run[2]}: {text}", flush=True)


def in_a_process(run: Run, options: argparse.Namespace, rate: float, folder: Path, deadline: float) -> None:
    """Run :func:`measure_engine` in a new process; its errors are kept in ``--out`` and recorded."""
    model, rank, engine = run
    command = [
        sys.executable, __file__, "--engine", engine, "--models", model, "--ranks", str(rank),
        "--folder", str(folder), "--rate", str(rate), "--deadline", str(deadline), "--out", str(options.out),
        "--rows", str(options.rows), "--tokens", str(options.tokens), "--only", *options.only,
        *(["--tiny"] if options.tiny else []),
    ]  # fmt: skip
    errors = options.out / f"gpu-{model}-{rank}-{engine}.log"
    with errors.open("w", encoding="utf-8") as log:
        try:
            status = subprocess.run(command, stderr=log, timeout=SECONDS_AN_ENGINE).returncode
            failed = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            failed = f"not finished after {SECONDS_AN_ENGINE} s"
    if not failed:
        errors.unlink()
        return
    tail = errors.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
    say(run, f"{failed}\n{tail}")
    record = {**gpu_records.describe(options, *run), **gpu_records.PROCESS}
    each = lengths(options)
    record |= {"matmul_tflops": rate / 1e12, "mean_length": sum(each) / len(each)}
    gpu_records.add(options.out / "gpu.json", record | {"failed": f"{tail}\n{failed}"})


def measure_all(options: argparse.Namespace, models: Path) -> None:
    """Run every engine that lacks a result, as long as there is time."""
    import torch

    deadline, rate = time.time() + options.seconds, 0.0
    for run in runs(options):
        left, before = missing(run, options), list[Variant]()
        while left and left != before and time.time() + LOADING < deadline:
            folder = models / (f"{run[0]}-tiny" if options.tiny else run[0])
            started = time.perf_counter()
            write_random_model(run[0], folder, options)
            say(run, f"the model is in {folder} after {time.perf_counter() - started:.0f} s")
            if not rate:
                rate = matmul_rate()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            in_a_process(run, options, rate, folder, deadline)
            # Again only for what a process that ended early has not reached.
            before, left = left, missing(run, options, retry=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--ranks", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--only", nargs="*", default=[], help="variants whose job and title contain a text")
    parser.add_argument("--rows", type=int, default=40, help="a multiple of 10")
    parser.add_argument("--tokens", type=int, default=16384, help="maximum tokens in a micro-batch")
    parser.add_argument("--seconds", type=float, default=1e9, help="after these no variant is started")
    parser.add_argument("--plan", action="store_true", help="print what would run, with expected seconds")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models: checks the script, the numbers mean nothing"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--folder", type=Path, help="where models are written and kept; default: temporary")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.tokens = min(options.tokens, 512)
    if options.plan:
        print(plan(options))
        return
    if options.engine:
        measure_engine(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        models = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measure_all(options, models)
    command = " ".join(["python benchmarks/gpu.py", *sys.argv[1:]])
    gpu = gpu_records.describe(options, "", 0, "")["gpu"]
    path = gpu_records.write_table(options.out / "gpu.json", command, gpu, options)
    print(path.read_text(encoding="utf-8"), path)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # read when torch is imported
    main()
