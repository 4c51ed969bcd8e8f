"""Time of reading, checking, splitting, rendering and tokenising as many full-length rows as LMSYS has.

    python benchmarks/data.py --tokenizer ../shared/tokenizers/llama3
    python benchmarks/data.py --tokenizer ../shared/tokenizers/llama3 --rows 5000

A simulated arena at full length is written to CSV. A separate process then does what a run does before
the model is loaded, twice: with an empty cache, and with the cache that the first process filled. Writes
``benchmarks/results/data-DATE.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from heading import heading

LIMIT_SECONDS, LIMIT_WARM_SECONDS, LIMIT_GB = 180, 5, 3.0


def measure(arena: Path, tokenizer_folder: str) -> None:
    """Print the seconds of each part, and this process's peak memory, as JSON."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with timed("import"):
        from hydra import compose, initialize_config_dir
        from omegaconf import OmegaConf
        from transformers import AutoTokenizer

        from lmsys_unsloth.config.prompt_schema import PromptConfig
        from lmsys_unsloth.config.run_directory import Run
        from lmsys_unsloth.config.schema import DataConfig
        from lmsys_unsloth.data import dataset
        from lmsys_unsloth.data.comparison import swap_rows
        from lmsys_unsloth.prompting import encoding
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("train", ["data=lmsys", "prompt=v2"]), resolve=True)
    config = DataConfig.model_validate(composed["data"] | {"path": str(arena)})
    with timed("load the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        encoder = encoding.RowEncoder(tokenizer, PromptConfig.model_validate(composed["prompt"]))
    with timed("read, check, group, fold, leak report"):
        fold = dataset.load_fold(config, 0, Run(arena.parent / "run"))
    with timed("render and tokenise"):
        rows = [row for unit in swap_rows(fold.train, config.swap, seed=42) for row in unit]
        encoded = [encoding.encode_cached(encoder, part, progress=True) for part in (rows, fold.validation)]
    lengths = [len(row.input_ids) for part in encoded for row in part]
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
                "rows": len(lengths),
                "mean_tokens": sum(lengths) / len(lengths),
                "groups": fold.description["folds"]["groups"],
            }
        )
    )


def as_markdown(runs: list[dict[str, Any]], megabytes: float, command: str) -> str:
    """Describe the measurements as Markdown."""
    first, second = runs
    parts = [
        f"| {name} | {first['seconds'][name]:.1f} | {second['seconds'][name]:.1f} |"
        for name in first["seconds"]
    ]
    totals = [sum(run["seconds"].values()) for run in runs]
    return "\n".join(
        [
            heading("From a CSV file to token ids", command),
            f"{first['rows']:,} simulated full-length rows, {megabytes:.0f} MB of CSV, "
            f"{first['groups']:,} groups of prompts, {first['mean_tokens']:,.0f} tokens a row (prompt v2, at "
            "most 3072).",
            "",
            "| part | first run, s | second run, s |",
            "|---|---|---|",
            *parts,
            f"| **total** | **{totals[0]:.1f}** (target: under {LIMIT_SECONDS}) | **{totals[1]:.1f}** "
            f"(target: under {LIMIT_WARM_SECONDS} after imports) |",
            f"| peak memory, GB (target: under {LIMIT_GB:.0f}) | {first['peak_gb']:.2f} "
            f"| {second['peak_gb']:.2f} |",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", required=True, help="folder with tokenizer.json")
    parser.add_argument("--rows", type=int, default=57_477)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.tokenizer)
        return
    with tempfile.TemporaryDirectory() as folder:
        arena = Path(folder) / "arena.csv"
        made = [sys.executable, "-m", "lmsys_unsloth.simulate", f"rows={arguments.rows}", f"out={arena}"]
        subprocess.run(made, cwd=ROOT, check=True)
        process = [sys.executable, __file__, "--measure", str(arena), "--tokenizer", arguments.tokenizer]
        environment = os.environ | {"LMSYS_UNSLOTH_CACHE": str(Path(folder) / "cache")}
        runs = []
        for _ in range(2):
            done = subprocess.run(process, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        text = as_markdown(
            runs, arena.stat().st_size / 1e6, f"python benchmarks/data.py --rows {arguments.rows}"
        )
    print(text)
    path = ROOT / "benchmarks" / "results" / f"data-{datetime.date.today()}.md"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
