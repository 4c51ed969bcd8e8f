"""The fast decoder is compared with the reference decoder before use, and replaced by it if it fails."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import loading, memory
from lmsys_unsloth.model.batch import Batch, collate, target
from lmsys_unsloth.model.decoder import Decoder, FastDecoder, ReferenceDecoder, causal_lm, compute_dtype
from lmsys_unsloth.model.fp8 import use_fp8
from lmsys_unsloth.model.layers import fp8 as layers_fp8
from lmsys_unsloth.model.packing import BLOCK
from lmsys_unsloth.prompting.encoding import EncodedRow

log = logging.getLogger(__name__)

T = TypeVar("T")

ROWS = 4
"""Number of the shortest rows that are compared."""

LONG = 2 * BLOCK + 1
"""Maximum tokens of a compared row, which is cut there: it reaches three blocks of FlexAttention's mask, and
exceeds the rows that have an attention of their own on a CPU. Gemma 2 9B's own forward pass keeps about 2 GB
of attention logits for the gradients of such a row."""

FACTOR = 3.0
"""Largest accepted distance of the fast decoder, in distances that a perturbation of the other makes.

Measured on a CPU in these units: correct decoders are at 0.2 to 1.0, tiny random models in float32 and in
bfloat16 as well as SmolLM2 in bfloat16. Mistakes in SmolLM2: rows that attend to each other 5 to 6, an
attention scale 25% too large 8 to 9, no positions 9 to 15. In float32 all of them exceed 1,000.
"""

UPDATE = 0.2
"""Size of the random updates with which gradients are compared, see :func:`random_updates`."""


def choose_decoder(
    model: nn.Module, rows: Sequence[EncodedRow], *, fast: bool, fp8: bool = False, training: bool = False
) -> Decoder:
    """Return the fast decoder if it is wanted and agrees with the reference decoder, else the latter.

    The fast one calls unsloth's kernels and recent PyTorch attention; versions of these that were not tested
    could fail or compute something else. Then a warning is logged and the run continues, more slowly. If the
    reference decoder fails, the fast one can't be checked; it is used, with a warning, as the other is no
    alternative.

    They are compared on the beginnings of the shortest ``rows`` and of the longest one, in ``training`` by
    their gradients too, and beyond the sliding window if a row exceeds it. The accepted distance is
    :data:`FACTOR` times the one between two runs of the reference decoder, the second of them
    :func:`perturbed` as rounding would perturb it. With ``fp8`` the fast decoder's frozen products are
    computed so afterwards, see :func:`~lmsys_unsloth.model.fp8.use_fp8`.
    """
    layers_fp8.detach([model])  # of a training before: the comparison is one with the weights themselves
    reference = loading.make_decoder(model, fast=False)
    if not fast or not rows:
        return reference
    if not loading.is_known(model):
        log.warning(
            "train.fast is not used: the fast decoder does not know models of type %s; the model's own "
            "forward pass is used", cast(Any, causal_lm(model)).config.model_type,
        )  # fmt: skip
        return reference
    was_training = model.training
    model.eval()
    try:
        with random_updates(model) if training else contextlib.nullcontext():
            decoder = _compare(model, rows, reference, gradients=training)
    finally:
        model.zero_grad()
        model.train(was_training)
    if fp8 and isinstance(decoder, FastDecoder):
        use_fp8(decoder, rows)
    return decoder


def _compare(model: nn.Module, rows: Sequence[EncodedRow], reference: Decoder, *, gradients: bool) -> Decoder:
    """Return the fast decoder if it runs and is as close to ``reference`` as rounding explains."""
    device = next(model.parameters()).device
    try:
        decoder = loading.make_decoder(model, fast=True)
        batches = [batch.to(device) for batch in _compared_rows(rows, decoder)]
        found = _results(decoder, batches, gradients)
    except Exception as error:
        log.warning("the fast decoder failed (%s); it is not used", _describe(error))
        return reference
    try:
        # unsloth compiles Gemma 2's forward pass with max-autotune, which takes longer than training some
        # steps. FlexAttention must be compiled, so the fast decoder runs outside of this.
        with torch.compiler.set_stance("force_eager"):
            expected = _results(reference, batches, gradients)
            with perturbed(model):
                explained = _distances(_results(reference, batches, gradients), expected)
        if not all(math.isfinite(distance) for distance in explained):
            raise FloatingPointError("its results are not finite")
    except Exception as error:
        log.warning(
            "the model's own forward pass failed (%s), so the fast decoder could not be checked; it is used",
            _describe(error),
        )  # fmt: skip
        return decoder
    distances, limits = _distances(found, expected), [FACTOR * distance for distance in explained]
    text = ", ".join(f"{a:.1e} (limit {b:.1e})" for a, b in zip(distances, limits, strict=True))
    if not all(a <= b for a, b in zip(distances, limits, strict=True)):
        log.warning(
            "the fast decoder disagrees with the model's own forward pass (relative distance %s); "
            "it is not used", text,
        )  # fmt: skip
        return reference
    log.info("the fast decoder agrees with the model's own forward pass (relative distance %s)", text)
    return decoder


def _compared_rows(rows: Sequence[EncodedRow], decoder: Decoder) -> list[Batch]:
    """Return the compared rows as a batch, and as another one the row that exceeds the sliding window."""
    ids = sorted((row.input_ids for row in rows), key=len)
    chosen = [[row[:LONG] for row in (*ids[:ROWS], ids[-1])]]
    window = decoder.window if isinstance(decoder, FastDecoder) else None
    if window is not None and len(ids[-1]) > window:
        chosen.append([ids[-1][: window + LONG]])
    return [collate(each, [target(None, None)] * len(each)) for each in chosen]


def parity_distances(decoder: Decoder, reference: Decoder, batch: Batch, *, gradients: bool) -> list[float]:
    """Return the largest of the rows' ``|a - b| / |b|``, Euclidean norms of their hidden states.

    With ``gradients`` that of all trained weights' gradients together is returned too.
    """
    return _distances(*(_results(each, [batch], gradients) for each in (decoder, reference)))


def _distances(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    return [relative_distance(a, b) for a, b in zip(found, expected, strict=True)]


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest ``|a - b| / |b|`` of vectors ``[..., width]``, with Euclidean norms."""
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def _results(decoder: Decoder, batches: Sequence[Batch], gradients: bool) -> list[Tensor]:
    """Hidden states ``[rows, width]`` of each batch; after the first its gradients ``[1, n]`` if wanted.

    The gradients are those of a weighted sum of the states.
    """
    first, *others = [_states(decoder, batch, gradients and not n) for n, batch in enumerate(batches)]
    if not gradients:
        return [first, *others]
    trained = [p for p in decoder.model.parameters() if p.requires_grad]
    found = [(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in trained]
    decoder.model.zero_grad()
    return [first, torch.cat(found)[None], *others]


def _states(decoder: Decoder, batch: Batch, gradients: bool) -> Tensor:
    """Hidden states ``[rows, width]``, float32; gradients are left in the parameters if wanted.

    For the reference decoder, which pads, the batch is split so that padding costs no more than a long row.
    """
    if gradients:
        decoder.model.zero_grad()
    states = []
    for part in [batch] if isinstance(decoder, FastDecoder) else batch.split(max(batch.lengths)):
        with torch.set_grad_enabled(gradients):
            states.append(decoder(part.input_ids, part.lengths).squeeze(1).float())
        if gradients:
            weights = torch.linspace(-1, 1, states[-1].shape[-1], device=batch.input_ids.device)
            (states[-1] * weights).sum().backward()  # type: ignore[no-untyped-call]
    return torch.cat(states).detach()


@contextlib.contextmanager
def random_updates(model: nn.Module) -> Iterator[None]:
    """Give new adapters updates other than zero within the block; afterwards they are what they were.

    B starts at zero, so that the gradients of A would be zero and adapters could be ignored unnoticed. Here B
    is drawn from a normal distribution of standard deviation ``UPDATE / (scale * sqrt(r))``, which changes
    outputs by some per cent. The state of PyTorch's random numbers does not change.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for module in model.modules():
            for name, b in getattr(module, "lora_B", {}).items():
                weight, scale = b.weight.data, cast(Any, module).scaling[name] * b.weight.shape[1] ** 0.5
                kept.append((weight, weight.clone()))
                generator = torch.Generator(weight.device).manual_seed(len(kept))
                weight.normal_(0, UPDATE / scale, generator=generator)
        yield
    finally:
        for weight, before in kept:
            weight.copy_(before)


@contextlib.contextmanager
def perturbed(model: nn.Module) -> Iterator[None]:
    """Multiply states by ``1 + u`` within the block, ``u`` uniform within plus and minus the machine epsilon.

    Rounding to the nearest number is half as large at most, and happens after every operation. So the
    embeddings are perturbed and, of every layer, its result and, under their usual names, those of attention
    and MLP: an error at the embeddings alone would be damped by all that later layers add, where rounding
    enters anew. The weights and the state of PyTorch's random numbers do not change.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    base = cast(Any, causal_lm(model))
    embeddings, epsilon = base.get_input_embeddings(), torch.finfo(compute_dtype(model)).eps
    generator = torch.Generator(embeddings.weight.device).manual_seed(0)

    def perturb(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        states, *others = output if isinstance(output, tuple) else (output,)
        u = torch.empty(states.shape, device=states.device).uniform_(-epsilon, epsilon, generator=generator)
        states = (states.float() * (1 + u)).to(states.dtype)
        return (states, *others) if isinstance(output, tuple) else states

    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    inner = [getattr(layer, name, None) for layer in layers for name in ("self_attn", "mlp")]
    parts = [embeddings, *layers, *(part for part in inner if part is not None)]
    hooks = [part.register_forward_hook(perturb) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class FallbackDecoder:
    """A decoder that is used until it fails at run time, and the reference decoder from then on.

    All who hold it go on with the reference decoder, so the failure is reported once.

    An error after which CUDA accepts no more work (an illegal memory access, say) can't be survived within
    the process: the reference decoder fails too, and its error is raised. The run must be resumed.

    Args:
        decoder: used first.
        checkpointed: whether the reference decoder checkpoints its layers in training; without, Gemma 2's
            keeps attention logits for every pair of positions.
    """

    def __init__(self, decoder: Decoder, *, checkpointed: bool = False) -> None:
        self.current, self.checkpointed = decoder, checkpointed
        self.on_failure: Callable[[], object] = lambda: None
        """Called when the fast decoder has failed, before the reference decoder is used."""

    @property
    def model(self) -> nn.Module:
        return self.current.model

    def __call__(self, input_ids: Tensor, lengths: Sequence[int], last: int = 1) -> Tensor:
        return self.current(input_ids, lengths, last)

    def run(self, function: Callable[[], T]) -> T:
        """Return ``function()``, which calls this decoder; once more if the fast decoder fails in it.

        The second time starts without gradients and from the same random numbers, so that nothing is lost.

        Raises:
            UserError, RuntimeError: of ``function``, if it is a user's error or memory was too small, or if
                the reference decoder was in use.
        """
        device = next(self.model.parameters()).device
        random = torch.get_rng_state(), torch.cuda.get_rng_state() if device.type == "cuda" else None
        try:
            return function()
        except Exception as error:
            refused = isinstance(error, UserError) or memory.is_out_of_memory(error)
            if refused or not isinstance(self.current, FastDecoder):
                raise
            log.warning(
                "the fast decoder failed (%s): going on with the model's own forward pass", _describe(error)
            )
        # Outside the handler: the exception keeps the activations alive.
        reference = ReferenceDecoder(self.model)
        reference.checkpointed = self.checkpointed
        self.current = reference
        self.on_failure()
        self.model.zero_grad()
        torch.set_rng_state(random[0])
        if random[1] is not None:
            torch.cuda.set_rng_state(random[1])
        return function()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
