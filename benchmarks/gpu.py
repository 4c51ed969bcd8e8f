"""Llama 3 8B and Gemma 2 9B on one GPU: parity first, then speed and memory of every way to train and score.

    python benchmarks/gpu.py                           # everything: about 9 minutes on an H100
    python benchmarks/gpu.py --models llama3 --ranks 16
    python benchmarks/gpu.py --tiny                    # the same steps with tiny models, on a CPU too

Weights are random in the real architecture, written to a temporary folder, and loaded and quantised as a
user's would be. Row lengths are distributed as in LMSYS's data (log-normal, mean 1,100, at most 3,072
tokens); token ids are random, as the cost does not depend on them. Each engine runs in a separate process, so
that its memory can be measured and libraries that patch others do not affect each other. Failures are
reported with their error.

Writes ``gpu-DATE.json`` (all numbers) and ``gpu-DATE.md`` (the table) to ``--out``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "benchmarks", "tests")]

from architectures import SHAPES, flops_per_token, lengths, write_random_model
from engines import ENGINES, matmul_rate
from heading import heading

SECONDS_AN_ENGINE = 240


def in_a_process(
    engine: str, name: str, folder: Path, rank: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return one engine's numbers, or its error if it failed."""
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        command = [
            sys.executable, __file__, "--engine", engine, "--models", name, "--ranks", str(rank),
            "--folder", str(folder), "--answer", answer.name, "--rows", str(options.rows),
            "--tokens", str(options.tokens), "--batches", str(options.batches),
            *(["--tiny"] if options.tiny else []),
        ]  # fmt: skip
        started = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_AN_ENGINE)
        except subprocess.TimeoutExpired:
            return {"failed": f"not finished after {SECONDS_AN_ENGINE} s"}
        text = Path(answer.name).read_text()
        if done.returncode or not text:
            return {"failed": done.stderr.strip()[-2000:]}
        found: dict[str, Any] = {**json.loads(text), "seconds": time.perf_counter() - started}
        return found


def table(result: dict[str, Any]) -> str:
    """Return all results as one Markdown table."""
    lines = [
        heading("Llama 3 8B and Gemma 2 9B on one GPU", result["env"]["command"]),
        f"Large bfloat16 matrix products run at {result['matmul_tflops']:.0f} TFLOP/s here; the bound is all "
        f"operations at that rate. Mean row {result['mean_length']:.0f} tokens; micro-batches of up to "
        f"{result['tokens']:,} tokens.\n",
        "| model | r | job | engine | variant | tokens/s | share of bound | speed / best stock | peak GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        start = f"| {case['model']} | {case['rank']} |"
        for job in ("training", "scoring"):
            best = _best(case["engines"].get("stock", {}).get(job, {}))
            for engine, found in case["engines"].items():
                if "failed" in found:
                    lines.append(f"{start} {job} | {engine} | failed: see the JSON | | | | |")
                for title, numbers in found.get(job, {}).items():
                    cells = _cells(numbers, case["bounds"][job], best)
                    lines.append(f"{start} {job} | {engine} | {title} | {cells} |")
        parity = case["engines"].get("lmsys_unsloth", {}).get("parity")
        if parity:
            found = f"hidden states {parity['hidden_states']:.1e}, gradients {parity['gradients']:.1e}"
            text = f"relative distance from the model's own forward: {found}"
            lines.append(f"{start} parity | lmsys_unsloth | {text} | | | | |")
    return "\n".join(lines) + "\n"


def _cells(numbers: dict[str, Any], bound: float, best: float | None) -> str:
    if "failed" in numbers:
        return f"{numbers['failed'].replace('|', '/')} | | |"
    speed = numbers["tokens_per_second"]
    against = f"{speed / best:.2f}×" if best else ""
    return f"{speed:,.0f} | {speed / bound:.0%} | {against} | {numbers['peak_gb']:.1f}"


def _best(variants: dict[str, Any]) -> float | None:
    speeds = [numbers["tokens_per_second"] for numbers in variants.values() if "failed" not in numbers]
    return max(speeds, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--ranks", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8192, help="maximum tokens in a micro-batch")
    parser.add_argument("--batches", type=int, default=6, help="per measurement; the first warms up")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models: checks the script, the numbers mean nothing"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.tokens = min(options.tokens, 512)
    if options.engine:
        found = ENGINES[options.engine](options.models[0], options.folder, options.ranks[0], options)
        options.answer.write_text(json.dumps(found))
        return
    result = measure_all(options)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"gpu-{result['date']}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1))
    stem.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result), stem.with_suffix(".json"))


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Run every model, rank and engine; plain transformers with the first rank only."""
    import torch

    from lmsys_unsloth.config.environment import describe_environment

    rate, each = matmul_rate(), lengths(options)
    cases = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, name)
            write_random_model(name, folder, options)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            for rank in options.ranks:
                engines = [e for e in options.engines if e != "plain" or rank == options.ranks[0]]
                case: dict[str, Any] = {"model": name, "rank": rank, "engines": {}}
                case["bounds"] = {
                    job: rate / flops_per_token(name, options, rank, training=job == "training")
                    for job in ("training", "scoring")
                }
                for engine in engines:
                    case["engines"][engine] = in_a_process(engine, name, folder, rank, options)
                    print(
                        f"{name} r={rank} {engine}: {json.dumps(case['engines'][engine])[:600]}", flush=True
                    )
                cases.append(case)
    return {
        "date": str(datetime.date.today()),
        "env": describe_environment(" ".join(["python benchmarks/gpu.py", *sys.argv[1:]])),
        "matmul_tflops": rate / 1e12,
        "mean_length": sum(each) / len(each),
        "tokens": options.tokens,
        "cases": cases,
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
