"""Time and memory of reading, checking, splitting, rendering and tokenising, up to the first batch.

    python benchmarks/data.py --tokenizer FOLDER
    python benchmarks/data.py --tokenizer FOLDER --rows 1000000 --length short

A simulated arena is written to Parquet. A separate process then does what a run does before the model is
loaded, twice: with an empty cache, and with the cache that the first process filled. Writes
``benchmarks/results/data-DATE.md``, or for another number of rows ``data-ROWS-DATE.md``.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from heading import heading

ROWS = 57_477
"""Rows of LMSYS's train.csv."""
PART = 10_000
LIMIT_GB = 4.0


def peak_gb() -> float:
    """Peak resident memory of this process in 10⁹ bytes, pages of memory-mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9


def write_arena(path: Path, rows: int, length: Literal["short", "full"]) -> None:
    """Write simulated rows to Parquet in parts, so that it takes little memory."""
    from lmsys_unsloth.data.arena import simulate_row
    from lmsys_unsloth.simulate import COLUMNS, record

    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, PART):
            part = [record(simulate_row(n, 0, length)) for n in range(start, min(start + PART, rows))]
            writer.write_table(pa.table(dict(zip(COLUMNS, zip(*part, strict=True), strict=True)), schema))


def measure(arena: Path, tokenizer_folder: str) -> None:
    """Print the seconds, those of processors, and the peak memory of each part as JSON."""
    seconds: dict[str, float] = {}
    computed: dict[str, float] = {}
    peaks: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        start, before = time.perf_counter(), time.process_time()
        yield
        seconds[name], computed[name] = time.perf_counter() - start, time.process_time() - before
        peaks[name] = peak_gb()
        print(f"{name}: {seconds[name]:.1f} s, peak {peaks[name]:.2f} GB", file=sys.stderr)

    with timed("import"):
        from omegaconf import OmegaConf
        from transformers import AutoTokenizer

        from lmsys_unsloth.config.prompt_schema import PromptConfig
        from lmsys_unsloth.config.resources import composing
        from lmsys_unsloth.config.run_directory import Run
        from lmsys_unsloth.config.schema import DataConfig
        from lmsys_unsloth.data import dataset
        from lmsys_unsloth.data.stored_rows import swap_rows
        from lmsys_unsloth.model.batch import by_length, collate
        from lmsys_unsloth.prompting.encoded_rows import encode_cached, token_counts
        from lmsys_unsloth.prompting.encoding import RowEncoder
    with composing() as compose:
        composed: Any = OmegaConf.to_container(compose(["data=lmsys", "prompt=v2"]), resolve=True)
    config = DataConfig.model_validate(composed["data"] | {"path": str(arena)})
    with timed("load the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        encoder = RowEncoder(tokenizer, PromptConfig.model_validate(composed["prompt"]))
    with timed("read, check, group, fold, leak report"):
        fold = dataset.load_fold(config, 0, Run(arena.parent / "run"))
    with timed("render and tokenise"):
        rows = swap_rows(fold.train, config.swap, seed=42)
        encoded = [encode_cached(encoder, part, progress=True) for part in (rows, fold.validation)]
    with timed("plan the batches, collate the first"):
        lengths = token_counts(encoded[0])
        first = by_length(lengths, 8192)[0]
        collate([encoded[0][row].input_ids for row in first], [(0.0, 0.0, 0.0)] * len(first))
    lengths = [*lengths, *token_counts(encoded[1])]
    print(
        json.dumps(
            {
                "seconds": seconds,
                "computed": computed,
                "peaks": peaks,
                "rows": len(lengths),
                "mean_tokens": sum(lengths) / len(lengths),
                "groups": fold.description["folds"]["groups"],
            }
        )
    )


def as_markdown(runs: list[dict[str, Any]], megabytes: float, command: str) -> str:
    """Describe the measurements as Markdown."""
    first, second = runs
    cells = [
        f"| {name} | {first['seconds'][name]:.1f} | {first['computed'][name]:.1f} "
        f"| {first['peaks'][name]:.2f} | {second['seconds'][name]:.1f} | {second['computed'][name]:.1f} "
        f"| {second['peaks'][name]:.2f} |"
        for name in first["seconds"]
    ]
    total, again = (sum(run["seconds"].values()) for run in runs)
    worked, worked_again = (sum(run["computed"].values()) for run in runs)
    highest, lower = (max(run["peaks"].values()) for run in runs)
    return "\n".join(
        [
            heading("From a Parquet file to token ids", command),
            f"{first['rows']:,} simulated rows, {megabytes:.0f} MB of Parquet, "
            f"{first['groups']:,} groups of prompts, {first['mean_tokens']:,.0f} tokens a row (prompt v2, at "
            "most 3072). The peak of resident memory includes pages of memory-mapped files.",
            "",
            "| part | first run, s | CPU, s | peak, GB | second run, s | CPU, s | peak, GB |",
            "|---|---|---|---|---|---|---|",
            *cells,
            f"| **total** | **{total:.1f}** | **{worked:.1f}** | **{highest:.2f}** (target: {LIMIT_GB:.0f}) "
            f"| **{again:.1f}** | **{worked_again:.1f}** | **{lower:.2f}** |",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", required=True, help="folder with tokenizer.json")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--length", choices=["short", "full"], default="full")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.tokenizer)
        return
    with tempfile.TemporaryDirectory() as folder:
        arena = Path(folder) / "arena.parquet"
        write_arena(arena, arguments.rows, arguments.length)
        process = [sys.executable, __file__, "--measure", str(arena), "--tokenizer", arguments.tokenizer]
        environment = os.environ | {"LMSYS_UNSLOTH_CACHE": str(Path(folder) / "cache")}
        runs = []
        for _ in range(2):
            done = subprocess.run(process, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        text = as_markdown(
            runs,
            arena.stat().st_size / 1e6,
            f"python benchmarks/data.py --rows {arguments.rows} --length {arguments.length}",
        )
    print(text)
    size = "" if arguments.rows == ROWS else f"{arguments.rows}-"
    path = ROOT / "benchmarks" / "results" / f"data-{size}{datetime.date.today()}.md"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
