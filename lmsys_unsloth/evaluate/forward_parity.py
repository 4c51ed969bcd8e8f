"""One model on a few rows by every forward pass that this project has, compared with its own."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

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
    """Time for all rows, after one warm-up."""
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

    An error in one pass does not keep the others from being compared. The second line is the reference with
    states :func:`~lmsys_unsloth.model.parity.perturbed` as rounding would perturb them; others are judged
    ``ok`` within :data:`~lmsys_unsloth.model.parity.FACTOR` times its distance.

    unsloth compiles some models' own forward pass, for minutes where row lengths differ; here it is not
    compiled.

    Args:
        model: with its answer head, weights in 4 bits if it was loaded so. It can't be used afterwards:
            its weights are dequantised and converted to float32 where memory allows.
        rows: encoded rows.
        config: configuration of the run.
    """
    compared = _Comparison(model, rows, tokens_per_batch(config.eval))
    one_by_one, together = compared.one_by_one, compared.together
    compared.add("ordinary, row by row", one_by_one)
    compared.add("the same, perturbed by rounding", one_by_one, context=perturbed)
    compared.add("ordinary, padded", together)
    compared.add("fast, packed", together, fast=True)
    compared.add("fast, row by row", one_by_one, fast=True)
    if _is_quantised(model):

        def dequantise() -> None:
            _dequantise(model, always=config.model.resident == "bf16")

        compared.add("ordinary, 4-bit weights dequantised once", one_by_one, prepare=dequantise)
        compared.add("fast, 4-bit weights dequantised once", together, fast=True, prepare=dequantise)
    if compute_dtype(model) != torch.float32:
        compared.add("ordinary, float32", one_by_one, prepare=lambda: _convert_to_float32(model))
    return compared.passes


@dataclass(frozen=True)
class _Result:
    probabilities: Tensor
    """float32 ``[rows, 3]``, on the CPU."""
    states: Tensor
    """float32 ``[rows, positions, width]``, on the CPU."""
    seconds: float
    peak_memory_gb: float | None


class _Skipped(Exception):
    """A forward pass is left out; the text says why."""


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


class _Comparison:
    """Computes forward passes one after the other; the first two become what others are judged by."""

    def __init__(self, model: nn.Module, rows: Sequence[EncodedRow], tokens: int) -> None:
        self.model, self.rows = model.eval(), rows
        self.one_by_one: list[MicroBatch] = [(row,) for row in range(len(rows))]
        self.together = by_length([len(row.input_ids) for row in rows], tokens)
        self.passes: list[ForwardPass] = []
        self.reference: _Result | None = None
        self.explained: float | None = None
        """Distance of states that rounding explains."""

    def add(
        self,
        name: str,
        batches: Sequence[MicroBatch],
        *,
        fast: bool = False,
        context: Callable[[nn.Module], contextlib.AbstractContextManager[None]] | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Compute and judge a forward pass; ``prepare`` is called first, ``context`` is open during it."""
        log.info("computing: %s", name)
        try:
            prepare()
            try:
                decoder = loading.make_decoder(self.model, fast=fast)
            except ValueError as error:
                self.passes.append(ForwardPass(name, "refused", _first_line(str(error))))
                return
            with (
                context(self.model) if context else contextlib.nullcontext(),
                contextlib.nullcontext() if fast else torch.compiler.set_stance("force_eager"),
            ):
                result = self._measure(decoder, batches)
            judged = self._judge(name, result)
        except _Skipped as reason:
            judged = ForwardPass(name, "skipped", str(reason))
        except Exception as error:
            log.warning("%s failed", name, exc_info=True)
            judged = ForwardPass(name, "failed", _describe(error))
        self.passes.append(judged)

    @torch.no_grad()
    def _measure(self, decoder: Decoder, batches: Sequence[MicroBatch]) -> _Result:
        """Compute all rows twice and return the second results."""
        self._compute(decoder, batches)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        probabilities, states = self._compute(decoder, batches)
        seconds = time.perf_counter() - started
        peak = memory.peak_gb() if torch.cuda.is_available() else None
        return _Result(probabilities, states, seconds, peak)

    def _compute(self, decoder: Decoder, batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
        """Probabilities and states of :class:`_Result`; answers of several tokens read several positions."""
        head, device = answer_head(self.model), next(self.model.parameters()).device
        probabilities, states = [], []
        for chosen in batches:
            ids = [self.rows[row].input_ids for row in chosen]
            recorder = _Recorder(decoder)
            logits = head.logits(recorder, collate(ids, [target(None, None)] * len(ids)).to(device))
            probabilities.append(outcome_probabilities(logits).float().cpu())
            states.append(torch.cat(recorder.states, dim=1).float().cpu())
        order = np.argsort([row for chosen in batches for row in chosen])
        return torch.cat(probabilities)[order], torch.cat(states)[order]

    def _judge(self, name: str, result: _Result) -> ForwardPass:
        """Compare with the reference; the first two passes become what others are judged by."""
        number, cost = len(self.passes), (result.seconds, result.peak_memory_gb)
        finite = bool(result.probabilities.isfinite().all() and result.states.isfinite().all())
        if not finite:
            note = "results are not finite"
            return ForwardPass(name, "failed" if number < 2 else "bad", note, None, None, *cost)
        if number == 0:
            self.reference = result
            return ForwardPass(name, "reference", "", 0.0, 0.0, *cost)
        if self.reference is None:
            return ForwardPass(name, "unknown", "the reference failed", None, None, *cost)
        difference = float((result.probabilities - self.reference.probabilities).abs().max())
        distance = relative_distance(result.states, self.reference.states)
        found = (difference, distance, *cost)
        if number == 1:
            self.explained = distance
            return ForwardPass(name, "reference", "", *found)
        if self.explained is None:
            return ForwardPass(name, "unknown", "no distance that rounding explains", *found)
        if distance <= FACTOR * self.explained:
            return ForwardPass(name, "ok", "", *found)
        times = distance / self.explained if self.explained else math.inf
        return ForwardPass(name, "bad", f"{times:,.1f} times what rounding explains", *found)


def _is_quantised(model: nn.Module) -> bool:
    return any(getattr(weight, "quant_state", None) is not None for weight in model.parameters())


def _dequantise(model: nn.Module, *, always: bool) -> None:
    """Dequantise 4-bit weights in place, unless ``always`` only if ``model.resident=auto`` would."""
    if _is_quantised(model):
        loading.make_resident(model, "bf16" if always else "auto")
    if _is_quantised(model):
        raise _Skipped("model.resident=auto keeps 4 bits with this free memory")


def _convert_to_float32(model: nn.Module) -> None:
    if _is_quantised(model):
        raise _Skipped("the weights are kept in 4 bits")
    more = sum(weight.numel() * (4 - weight.itemsize) for weight in model.parameters())
    if more > FLOAT32_SHARE * memory.free_bytes():
        raise _Skipped(f"float32 weights need {more / 1e9:.1f} GB more")
    nn.Module.float(model)  # the method of transformers refuses models that were quantised
    causal_lm(model).config.dtype = torch.float32  # type: ignore[union-attr]


def _describe(error: Exception) -> str:
    if memory.is_out_of_memory(error):
        return "out of memory"
    return _first_line(f"{type(error).__name__}: {error}")


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= NOTE_CHARACTERS else f"{line[: NOTE_CHARACTERS - 1]}…"
