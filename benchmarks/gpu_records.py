"""Results of the GPU benchmark: one file that is replaced after every variant, and the table made of it."""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heading import heading

from lmsys_unsloth.config.environment import describe_environment
from lmsys_unsloth.core.files import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
Record = dict[str, Any]

WHAT = ("model", "rank", "engine", "job", "variant", "gpu", "rows", "tokens", "tiny")
"""Keys of a record that say what was measured; :func:`code_version` says with which code."""

PROCESS = {"job": "", "variant": "the process"}
"""What the record of a process that failed has instead of a variant."""


@functools.cache
def code_version() -> str:
    """Return the commit, with a hash of the sources if there is none or if files differ from it."""
    commit = describe_environment("")["commit"]
    if commit and not commit.endswith("+"):
        return str(commit)
    digest = hashlib.sha256()
    for folder in ("lmsys_unsloth", "benchmarks", "conf"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(path.read_bytes())
    return f"{commit or '+'}{digest.hexdigest()[:8]}"


def describe(options: argparse.Namespace, model: str, rank: int, engine: str) -> Record:
    """Return the keys that the records of one engine share."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "model": model, "rank": rank, "engine": engine, "gpu": gpu, "rows": options.rows,
        "tokens": options.tokens, "tiny": options.tiny, "commit": code_version(),
        "date": str(datetime.date.today()),
    }  # fmt: skip


def read(file: Path) -> list[Record]:
    """Return all records of earlier calls."""
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []


def add(file: Path, record: Record) -> None:
    """Add a record, in place of an older one of the same variant and code, by replacing the file."""
    kept = [old for old in read(file) if not (same(old, record) and old["commit"] == record["commit"])]
    write_json(file, [*kept, record])


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both records measure the same, perhaps with other code."""
    return all(one.get(key) == other.get(key) for key in WHAT)


def is_finished(record: Record) -> bool:
    """Whether nothing is gained by measuring again: there are numbers, or the GPU's memory was too small."""
    return "failed" not in record or bool(record.get("out_of_memory"))


def write_table(file: Path, command: str, gpu: str, options: argparse.Namespace) -> Path:
    """Write the newest record of each variant on this GPU as Markdown, beside ``file``."""
    newest: list[Record] = []
    here = {"gpu": gpu, "rows": options.rows, "tokens": options.tokens, "tiny": options.tiny}
    for record in read(file):
        if here.items() <= record.items():
            # A process that has failed is of no interest once a later one has measured something.
            newest = [old for old in newest if not same(old, record) and not same(old, record | PROCESS)]
            newest.append(record)
    path = file.parent / f"gpu-{datetime.date.today()}.md"
    write_text(path, table(newest, command))
    return path


def table(records: Sequence[Record], command: str) -> str:
    """Return a Markdown table for each model."""
    lines = [heading("Llama 3 8B and Gemma 2 9B on one GPU", command)]
    if not records:
        return lines[0] + "\nNothing has been measured.\n"
    rates = [record["matmul_tflops"] for record in records]
    first = records[0]
    lines.append(
        f"{first['rows']} rows of {first['mean_length']:.0f} tokens on average; each batch runs once before "
        "it is timed.\nThe bound is all operations at the rate of a product of two 8192 × 8192 bfloat16 "
        f"matrices,\nmeasured in the same call ({min(rates):.0f} to {max(rates):.0f} TFLOP/s): the share of "
        "the bound is the share of that rate achieved.\n"
    )
    for engine in dict.fromkeys(record["engine"] for record in records):
        commits = sorted({record["commit"] for record in records if record["engine"] == engine})
        lines.append(f"- {engine}: measured at commit {', '.join(commits)}")
    for model in dict.fromkeys(record["model"] for record in records):
        own = [record for record in records if record["model"] == model]
        lines += [
            f"\n## {model}\n",
            "| r | job | engine | variant | tokens/s | ms a step | share of bound | speed / best stock "
            "| peak GB |\n|---|---|---|---|---|---|---|---|---|",
            *(_row(record, own) for record in _in_order(own)),
        ]
    return "\n".join(lines) + "\n"


def _in_order(records: Sequence[Record]) -> list[Record]:
    jobs, engines = ["parity", "training", "scoring"], ["plain", "stock", "lmsys_unsloth"]
    return sorted(
        records,
        key=lambda r: (
            r["rank"],
            jobs.index(r["job"]) if r["job"] in jobs else -1,
            engines.index(r["engine"]),
        ),
    )


def _row(record: Record, records: Sequence[Record]) -> str:
    start = f"| {record['rank']} | {record['job']} | {record['engine']} | {record['variant']} |"
    if "failed" in record:
        first = record["failed"].replace("|", "/").splitlines()
        return f"{start} {first[-1][:200] if first else 'failed'} | | | | |"
    if record["job"] == "parity":
        found = f"hidden states {record['hidden_states']:.1e}, gradients {record['gradients']:.1e}"
        rounding = f"{record['by_rounding']:.1e}, {record['gradients_by_rounding']:.1e}"
        return f"{start} distance from the model's own forward: {found}; by rounding {rounding} | | | | |"
    stock = [
        other["tokens_per_second"]
        for other in records
        if other["engine"] == "stock"
        and "tokens_per_second" in other
        and (other["rank"], other["job"]) == (record["rank"], record["job"])
    ]
    speed = record["tokens_per_second"]
    ratio = f"{speed / max(stock):.2f}×" if stock else ""
    return (
        f"{start} {speed:,.0f} | {record['ms_per_step']:,.0f} | {speed / record['bound']:.0%} | {ratio} "
        f"| {record['peak_gb']:.1f} |"
    )
