"""Token ids → hidden states at the answer slot, and nothing that they do not need.

Two decoders compute the same: :class:`FastDecoder` for use, :class:`OrdinaryDecoder` (the model's own
forward over padded rows) to compare with and for ``train.fast=false``. What the fast one leaves out:

- padding: rows lie one behind the other;
- the last layer's queries, output projection and MLP, and the final norm, at all positions but the slot
  (its keys and values are needed everywhere);
- activations of layers below the first adapter (``lora.first_layer``), which get no gradient, and, as far
  as memory demands it, of others, which are then computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from lmsys_unsloth.model import attention, layers, memory
from lmsys_unsloth.model.attention import PackedRows
from lmsys_unsloth.model.layers import Kernels


class Decoder(Protocol):
    """Runs a model up to, and without, its LM head."""

    @property
    def model(self) -> nn.Module: ...

    def __call__(self, input_ids: Tensor, lengths: Sequence[int], last: int = 1) -> Tensor:
        """Hidden states ``[rows, last, width]`` after the final norm at each row's last positions.

        Args:
            input_ids: int64 ``[tokens]``, rows one behind the other.
            lengths: tokens of each row.
        """


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers model inside an optional PEFT wrapper."""
    unwrap = getattr(model, "get_base_model", None)
    return cast(nn.Module, unwrap()) if unwrap else model


def compute_dtype(model: nn.Module) -> torch.dtype:
    """What the model computes in: the dtype of its embeddings, which are never quantised."""
    return cast(torch.dtype, cast(Any, causal_lm(model)).get_input_embeddings().weight.dtype)


class OrdinaryDecoder:
    """The model's own forward over rows padded on the right, every position in every layer.

    No attention mask is needed: attention is causal and the padding comes after the answer slot, so
    nothing that is read has seen it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, input_ids: Tensor, lengths: Sequence[int], last: int = 1) -> Tensor:
        padded = pad_sequence(list(torch.split(input_ids, list(lengths))), batch_first=True)
        decoder = cast(nn.Module, causal_lm(self.model).model)
        in_bfloat16 = compute_dtype(self.model) == torch.bfloat16
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=in_bfloat16):
            states = cast(Tensor, decoder(input_ids=padded, use_cache=False).last_hidden_state)
        ends = torch.tensor(list(lengths), device=states.device)[:, None]
        positions = ends - torch.arange(last, 0, -1, device=states.device)
        return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))


WORKSPACE = 2
"""What a forward and backward pass need for a moment, in layers' worth of kept activations."""


class FastDecoder:
    """Llama's and Gemma 2's decoder over the loaded model's own modules, on packed rows.

    Args:
        model: a transformers Llama or Gemma 2, plain or with PEFT adapters, 4-bit or not.
        kernels: unsloth's, for CUDA; None for plain PyTorch.

    Raises:
        ValueError: another architecture.
    """

    def __init__(self, model: nn.Module, kernels: Kernels | None = None) -> None:
        self.model, self.kernels = model, kernels
        base = cast(Any, causal_lm(model))
        self.config, self.decoder = base.config, base.model
        if self.config.model_type not in ("llama", "gemma2"):
            raise ValueError(
                f"model_type {self.config.model_type!r}: the fast decoder knows llama and gemma2"
            )
        self.gemma = self.config.model_type == "gemma2"
        self.layers: list[Any] = list(self.decoder.layers)
        trained = [any(p.requires_grad for p in layer.parameters()) for layer in self.layers]
        self.first_trained = trained.index(True) if any(trained) else len(trained)
        self.checkpointed = 0
        """So many layers from the first trained one on keep only their input for the backward pass."""

    def __call__(self, input_ids: Tensor, lengths: Sequence[int], last: int = 1) -> Tensor:
        rows = PackedRows(tuple(lengths), tuple(lengths), input_ids.device)
        with torch.no_grad():
            x = self._embedded(input_ids)
            table = layers.rotary_table(self.config, rows.positions, x.dtype)
        wants_gradient = torch.is_grad_enabled()
        for index in range(len(self.layers) - 1):
            with torch.set_grad_enabled(wants_gradient and index >= self.first_trained):
                x = self._kept_or_checkpointed(index, x, rows, table)
        x = self._layer(len(self.layers) - 1, x, rows, table, wanted=last)
        return self._norm(self.decoder.norm, x).view(len(lengths), last, -1)

    @property
    def all_checkpointed(self) -> bool:
        return self.checkpointed >= len(self.layers) - self.first_trained - 1  # the last layer keeps little

    def activation_bytes(self, row_length: int) -> float:
        """What one token of such a row keeps for the backward pass in a layer that is not checkpointed.

        Measured, so that it holds for any dtype, rank, kernel and kind of attention.
        """
        measured = []
        for count in (1, 2):  # the difference leaves out what does not grow with the batch
            lengths = (row_length,) * count
            device = self.decoder.embed_tokens.weight.device
            ids = torch.zeros(sum(lengths), dtype=torch.int64, device=device)
            rows = PackedRows(lengths, lengths, device)
            with torch.no_grad():
                x = self._embedded(ids)
                table = layers.rotary_table(self.config, rows.positions, x.dtype)
            x.requires_grad_()  # as behind another trained layer: its norm then keeps its input
            with torch.enable_grad(), memory.kept_for_backward(self.model) as kept:
                held = self._layer(min(self.first_trained, len(self.layers) - 1), x, rows, table)
            del held
            measured.append(kept.bytes)
        return (measured[1] - measured[0]) / row_length

    def tokens_kept(self, row_length: int, free_bytes: float) -> int:
        """The largest micro-batch that fits into ``free_bytes`` without a checkpointed layer."""
        trained = len(self.layers) - self.first_trained
        return int(free_bytes / ((trained + WORKSPACE) * self.activation_bytes(row_length)))

    def checkpoints_needed(self, tokens: int, row_length: int, free_bytes: float) -> int:
        """The fewest checkpointed layers with which a micro-batch of ``tokens`` fits into ``free_bytes``."""
        kept = self.activation_bytes(row_length) * tokens
        trained = len(self.layers) - self.first_trained
        weight = self.decoder.embed_tokens.weight
        entry = tokens * weight.shape[1] * weight.element_size()
        needed = [count * entry + (trained - count + WORKSPACE) * kept for count in range(trained)]
        return next((count for count, size in enumerate(needed) if size < free_bytes), trained)

    def _embedded(self, input_ids: Tensor) -> Tensor:
        """``[1, tokens, width]``; unsloth's kernels want the leading dimension."""
        weight = self.decoder.embed_tokens.weight
        x = F.embedding(input_ids, weight)[None]
        if self.gemma:
            # The factor is rounded to the model's dtype, as it was when Gemma 2 was trained.
            x = x * torch.tensor(self.config.hidden_size**0.5, dtype=weight.dtype, device=x.device)
        return x

    def _kept_or_checkpointed(
        self, index: int, x: Tensor, rows: PackedRows, table: tuple[Tensor, Tensor]
    ) -> Tensor:
        trained_before = index - self.first_trained
        if torch.is_grad_enabled() and 0 <= trained_before < self.checkpointed:
            return cast(Tensor, checkpoint(self._layer, index, x, rows, table, use_reentrant=False))
        return self._layer(index, x, rows, table)

    def _layer(
        self,
        index: int,
        x: Tensor,
        rows: PackedRows,
        table: tuple[Tensor, Tensor],
        wanted: int | None = None,
    ) -> Tensor:
        """One layer for ``x`` ``[1, tokens, width]``; with ``wanted``, only at each row's last positions."""
        layer = self.layers[index]
        h = self._norm(layer.input_layernorm, x)
        if wanted is None:
            q, k, v = layers.queries_keys_values(layer.self_attn, h, self.kernels)
            asking, kernels, q_table = rows, self.kernels, table
        else:
            chosen, asking = rows.last(wanted)
            q = layers.linear(layer.self_attn.q_proj, h[:, chosen])
            k, v = (layers.linear(p, h) for p in (layer.self_attn.k_proj, layer.self_attn.v_proj))
            x, kernels, q_table = x[:, chosen], None, (table[0][chosen], table[1][chosen])
        heads = self._attend(index, q, k, v, asking, q_table, table)
        h = layers.attention_output(layer.self_attn, heads, kernels)
        if self.gemma:
            x = x + self._norm(layer.post_attention_layernorm, h)
            h = layers.gated_mlp(layer.mlp, self._norm(layer.pre_feedforward_layernorm, x), kernels)
            return x + self._norm(layer.post_feedforward_layernorm, h)
        x = x + h
        return x + layers.gated_mlp(layer.mlp, self._norm(layer.post_attention_layernorm, x), kernels)

    def _attend(
        self,
        index: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rows: PackedRows,
        q_table: tuple[Tensor, Tensor],
        k_table: tuple[Tensor, Tensor],
    ) -> Tensor:
        own = self.layers[index].self_attn
        q, k, v = (x.view(x.shape[1], -1, own.head_dim) for x in (q, k, v))
        q, k = layers.rotated(q, q_table), layers.rotated(k, k_table)
        cap = self.config.attn_logit_softcapping if self.gemma else None
        attend = attention.best(rows, q.dtype, cap)
        return attend(q, k, v, rows, own.scaling, cap, self._window(index)).reshape(1, len(q), -1)

    def _window(self, index: int) -> int | None:
        kinds = getattr(self.config, "layer_types", None)
        sliding = self.gemma and kinds is not None and kinds[index] == "sliding_attention"
        return cast(int, self.config.sliding_window) if sliding else None

    def _norm(self, module: nn.Module, x: Tensor) -> Tensor:
        return layers.rms_norm(module, x, gemma=self.gemma, kernels=self.kernels)
