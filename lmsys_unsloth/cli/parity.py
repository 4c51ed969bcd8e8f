"""What ``eval.py debug=parity`` does: compare every forward pass of a model on a few real rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.cli.prepare import prepare_scoring
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.dataset import load_rows
from lmsys_unsloth.data.selection import NO_FOLD, Selection
from lmsys_unsloth.evaluate.forward_parity import ForwardPass, choose_by_length, compare_forward_passes
from lmsys_unsloth.model import loading, trained_weights
from lmsys_unsloth.model.answer_head import attach_head
from lmsys_unsloth.model.decoder import compute_dtype
from lmsys_unsloth.model.parity import FACTOR

CANDIDATES = 256
"""Number of the file's first rows from which the compared ones are chosen by length."""

_COLOURS = {"ok": "green", "bad": "red", "failed": "red"}


def check_parity(config: Config, members: Sequence[Member], output: Run) -> bool:
    """Compare the forward passes of an untrained model or of one run; print a table, write ``parity.json``.

    Labels, folds and rows that the run was trained on do not matter.

    Returns:
        Whether no forward pass was bad or failed.

    Raises:
        UserError: several runs are named, or a problem that can be detected before weights are loaded.
    """
    if len(members) > 1:
        raise UserError("debug.parity = True: compares the forward passes of one model; name one run=RUN.")
    rows = load_rows(config.data, output)[:CANDIDATES]
    prepared = prepare_scoring(config, Selection(rows, np.full(len(rows), NO_FOLD), None), output)
    # 4-bit weights are dequantised within the comparison, so that it has both.
    model = loading.load_model(config.model.model_copy(update={"resident": "4bit"}))
    adapter = members[0].run.adapter if members else None
    if adapter is not None:
        model = trained_weights.load_adapters(model, adapter)
    attach_head(model, config.head, prepared.encoder.answer_ids, folder=adapter)
    chosen = choose_by_length(prepared.scored)
    dtype = str(compute_dtype(model)).removeprefix("torch.")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    passes = compare_forward_passes(model, chosen, config)
    good = not any(each.is_bad for each in passes)
    write_json(
        output.parity,
        {
            "ok": good,
            "model": config.model.name,
            "device": device,
            "dtype": dtype,
            "factor": FACTOR,
            "rows": [{"id": row.comparison.id, "tokens": len(row.input_ids)} for row in chosen],
            "passes": [dataclasses.asdict(each) for each in passes],
        },
    )
    lengths = [len(row.input_ids) for row in chosen]
    title = (
        f"{config.model.name}, {dtype} on {device}: {len(chosen)} of the first {len(rows)} rows, "
        f"{min(lengths):,} to {max(lengths):,} tokens"
    )
    _print_table(title, passes)
    print(f"run directory: {output.path}")
    return good


def _print_table(title: str, passes: Sequence[ForwardPass]) -> None:
    console, table = Console(highlight=False), Table(box=None, pad_edge=False)
    table.add_column("forward pass")
    for name in ("probability", "states", "seconds", "GB"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for each in passes:
        numbers = [
            _format(each.probability_difference, ".1e"), _format(each.state_distance, ".1e"),
            _format(each.seconds, ".2f"), _format(each.peak_memory_gb, ".1f"),
        ]  # fmt: skip
        colour = _COLOURS.get(each.verdict, "default")
        table.add_row(each.name, *numbers, f"[{colour}]{each.verdict}[/{colour}]")
    console.print(title, markup=False)
    console.print(table)
    for each in passes:
        if each.note:
            console.print(f"  {each.name}: {each.verdict}, {each.note}", markup=False)
    console.print(
        "probability, states: largest difference of a probability, and largest relative\n"
        "distance of a hidden state, from the first line. ok: a distance of states of at\n"
        f"most {FACTOR:g} times that of the second line.",
        markup=False,
    )


def _format(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
