"""One model on a few rows by every forward pass that this project has, compared with its own."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.evaluate.scoring import tokens_per_batch
from lmsys_unsloth.model import loading, memory
from lmsys_unsloth.model.answer_head import answer_head, outcome_probabilities
from lmsys_unsloth.model.batch import MicroBatch, by_length, collate, target
from lmsys_unsloth.model.decoder import Decoder, causal_lm, compute_dtype
from lmsys_unsloth.model.parity import FACTOR, perturbed, relative_distance
from lmsys_unsloth.prompting.encoding import EncodedRow

log = logging.getLogger(__name__)

T = TypeVar("T")

ROWS = 8
"""Number of compared rows."""

NOTE_CHARACTERS = 80
"""Maximum length of the note of a failure; the log has all of it."""

FLOAT32_SHARE = 0.5
"""Fraction of free memory that a float32 copy of the weights may use."""

Verdict = Literal["reference", "ok", "bad", "failed", "refused", "skipped", "unknown"]


@dataclass(frozen=True)
class ForwardPass:
    """Results of one forward pass; those that it did not get to are None."""

    name: str
    verdict: Verdict
    """``reference``: others are judged by it. ``ok``, ``bad``: whether its hidden states are as close to the
    reference as rounding explains. ``failed``: it raised an error. ``refused``: the fast decoder does not
    know this model. ``skipped``: memory is too small. ``unknown``: there is no reference to judge it by."""
    note: str = ""
    """Reason of the verdict."""
    probability_difference: float | None = None
    """Largest absolute difference of a probability from the reference."""
    state_distance: float | None = None
    """Largest relative distance, ``|a - b| / |b|``, of a hidden state that the answer head reads."""
    seconds: float | None = None
    """Time for all rows, after a warm-up."""
    peak_memory_gb: float | None = None
    """Peak memory of the GPU, weights included, in 10⁹ bytes; None without a GPU."""

    @property
    def is_bad(self) -> bool:
        """Whether this pass should not be relied on."""
        return self.verdict in ("bad", "failed")


def choose_by_length(rows: Sequence[EncodedRow], count: int = ROWS) -> list[EncodedRow]:
    """Return ``count`` rows, from the shortest to the longest at even steps of rank, in their own order."""
    by_size = sorted(range(len(rows)), key=lambda row: len(rows[row].input_ids))
    ranks = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[row] for row in sorted(by_size[rank] for rank in ranks)]


def compare_forward_passes(model: nn.Module, rows: Sequence[EncodedRow], config: Config) -> list[ForwardPass]:
    """Compute ``rows`` by each forward pass and compare it with the first, the model's own row by row.

    An error in one pass does not keep the others from being compared. The second is the first with states
    :func:`~lmsys_unsloth.model.parity.perturbed` as rounding would perturb them; others are judged ``ok``
    within :data:`~lmsys_unsloth.model.parity.FACTOR` times its distance. 4-bit weights are kept for two
    passes, and for all others dequantised once if memory allows.

    unsloth compiles some models' own forward pass, for minutes where row lengths differ; here it is not
    compiled.

    Args:
        model: with its answer head, and with weights kept in 4 bits if it was loaded so. It can't be used
            afterwards: its weights are dequantised and converted to float32 where memory allows.
        rows: encoded rows.
        config: configuration of the run.
    """
    model.eval()
    one_by_one: list[MicroBatch] = [(row,) for row in range(len(rows))]
    together = by_length([len(row.input_ids) for row in rows], tokens_per_batch(config.eval))
    compute = functools.partial(_compute, model, rows)
    kept, dequantised = [], None
    if _is_quantised(model):
        kept = [
            compute("ordinary, padded, 4-bit kept", together),
            compute("fast, packed, 4-bit kept", together, fast=True),
        ]
        dequantised = _attempt("4-bit, dequantised once", lambda: _dequantise(model, config.model.resident))
    reference = compute("ordinary, row by row", one_by_one)
    rounding = compute("perturbed by rounding", one_by_one, context=perturbed)
    others = [
        compute("ordinary, padded", together),
        compute("fast, packed", together, fast=True),
        compute("fast, row by row", one_by_one, fast=True),
        *kept,
    ]
    if isinstance(dequantised, ForwardPass):  # it was skipped, or failed
        others.append(dequantised)
    if compute_dtype(model) != torch.float32:
        convert = functools.partial(_convert_to_float32, model)
        others.append(compute("ordinary, float32", one_by_one, prepare=convert))
    first, second, *lines = [_numbers(found, reference) for found in (reference, rounding, *others)]
    return [first, second, *(_judge(line, second.state_distance) for line in lines)]


@dataclass(frozen=True)
class _Result:
    name: str
    probabilities: Tensor
    """float32 ``[rows, 3]``, on the CPU."""
    states: Tensor
    """float32 ``[rows, positions, width]``, on the CPU."""
    seconds: float
    peak_memory_gb: float | None

    @property
    def is_finite(self) -> bool:
        return bool(self.probabilities.isfinite().all() and self.states.isfinite().all())


class _LeftOut(Exception):
    """A forward pass is refused or skipped."""

    def __init__(self, verdict: Verdict, note: str) -> None:
        super().__init__(note)
        self.verdict, self.note = verdict, note


class _Recorder:
    """A decoder that keeps the hidden states it returns."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.states = decoder, list[Tensor]()

    @property
    def model(self) -> nn.Module:
        return self.decoder.model

    def __call__(self, input_ids: Tensor, lengths: Sequence[int], last: int = 1) -> Tensor:
        self.states.append(self.decoder(input_ids, lengths, last))
        return self.states[-1]


def _compute(
    model: nn.Module,
    rows: Sequence[EncodedRow],
    name: str,
    batches: Sequence[MicroBatch],
    *,
    fast: bool = False,
    context: Callable[[nn.Module], contextlib.AbstractContextManager[None]] | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> _Result | ForwardPass:
    """Compute a forward pass, after ``prepare`` and within ``context``; a line that says so if it fails."""

    def run() -> _Result:
        prepare()
        try:
            decoder = loading.make_decoder(model, fast=fast)
        except ValueError as error:
            raise _LeftOut("refused", _first_line(str(error))) from None
        with (
            context(model) if context else contextlib.nullcontext(),
            contextlib.nullcontext() if fast else torch.compiler.set_stance("force_eager"),
        ):
            return _measure(name, decoder, rows, batches)

    return _attempt(name, run)


def _attempt(name: str, function: Callable[[], T]) -> T | ForwardPass:
    """Return ``function()``, or a line that says why there is no result."""
    log.info("computing: %s", name)
    try:
        return function()
    except _LeftOut as reason:
        return ForwardPass(name, reason.verdict, reason.note)
    except Exception as error:
        log.warning("%s failed", name, exc_info=True)
        return ForwardPass(name, "failed", _describe(error))


@torch.no_grad()
def _measure(
    name: str, decoder: Decoder, rows: Sequence[EncodedRow], batches: Sequence[MicroBatch]
) -> _Result:
    """Compute all rows after a warm-up, which on a CPU, where nothing is compiled, is the shortest row."""
    on_gpu = torch.cuda.is_available()
    shortest = min(range(len(rows)), key=lambda row: len(rows[row].input_ids))
    _outputs(decoder, rows, batches if on_gpu else [(shortest,)])
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    probabilities, states = _outputs(decoder, rows, batches)
    seconds = time.perf_counter() - started
    return _Result(name, probabilities, states, seconds, memory.peak_gb() if on_gpu else None)


def _outputs(
    decoder: Decoder, rows: Sequence[EncodedRow], batches: Sequence[MicroBatch]
) -> tuple[Tensor, Tensor]:
    """Probabilities and states of :class:`_Result`; answers of several tokens read several positions."""
    head, device = answer_head(decoder.model), next(decoder.model.parameters()).device
    probabilities, states = [], []
    for chosen in batches:
        ids = [rows[row].input_ids for row in chosen]
        recorder = _Recorder(decoder)
        logits = head.logits(recorder, collate(ids, [target(None, None)] * len(ids)).to(device))
        probabilities.append(outcome_probabilities(logits).float().cpu())
        states.append(torch.cat(recorder.states, dim=1).float().cpu())
    order = np.argsort([row for chosen in batches for row in chosen])
    return torch.cat(probabilities)[order], torch.cat(states)[order]


def _numbers(found: _Result | ForwardPass, reference: _Result | ForwardPass) -> ForwardPass:
    """Compare a result with the reference; what is a line already stays as it is."""
    if isinstance(found, ForwardPass):
        return found
    line = ForwardPass(found.name, "reference", seconds=found.seconds, peak_memory_gb=found.peak_memory_gb)
    if not found.is_finite:
        return replace(line, verdict="failed", note="results are not finite")
    if isinstance(reference, ForwardPass) or not reference.is_finite:
        return replace(line, verdict="unknown", note="the first line failed")
    return replace(
        line,
        probability_difference=float((found.probabilities - reference.probabilities).abs().max()),
        state_distance=relative_distance(found.states, reference.states),
    )


def _judge(line: ForwardPass, explained: float | None) -> ForwardPass:
    """Set the verdict of a line with numbers, given the distance of states that rounding explains."""
    if line.state_distance is None:
        return line
    if explained is None:
        return replace(line, verdict="unknown", note="the second line failed")
    if line.state_distance <= FACTOR * explained:
        return replace(line, verdict="ok")
    times = line.state_distance / explained if explained else math.inf
    return replace(line, verdict="bad", note=f"{times:,.1f} times what rounding explains")


def _is_quantised(model: nn.Module) -> bool:
    return any(getattr(weight, "quant_state", None) is not None for weight in model.parameters())


def _dequantise(model: nn.Module, resident: str) -> None:
    """Dequantise 4-bit weights in place; only if ``model.resident=auto`` would, unless it is ``bf16``."""
    loading.make_resident(model, "bf16" if resident == "bf16" else "auto")
    if _is_quantised(model):
        raise _LeftOut("skipped", "all lines keep 4 bits, as model.resident=auto does with this free memory")


def _convert_to_float32(model: nn.Module) -> None:
    if _is_quantised(model):
        raise _LeftOut("skipped", "the weights are kept in 4 bits")
    more = sum(weight.numel() * (4 - weight.itemsize) for weight in model.parameters())
    if more > FLOAT32_SHARE * memory.free_bytes():
        raise _LeftOut("skipped", f"float32 weights need {more / 1e9:.1f} GB more")
    nn.Module.float(model)  # the method of transformers refuses models that were quantised
    causal_lm(model).config.dtype = torch.float32  # type: ignore[union-attr]


def _describe(error: Exception) -> str:
    if memory.is_out_of_memory(error):
        return "out of memory"
    return _first_line(f"{type(error).__name__}: {error}")


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= NOTE_CHARACTERS else f"{line[: NOTE_CHARACTERS - 1]}…"
