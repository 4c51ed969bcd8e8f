"""Token ids → hidden states at the answer slot.

Two decoders compute the same: :class:`FastDecoder`, and :class:`ReferenceDecoder`, which is the model's own
forward pass over padded rows (``train.fast=false``). The fast one leaves out:

- padding: rows are concatenated;
- queries, output projection and MLP of the last layer, and the final norm, at all positions but the slot (the
  last layer's keys and values are needed everywhere);
- activations of layers below the first adapter (``lora.first_layer``), which get no gradient, and, as far as
  memory demands it, of others, which are then recomputed in the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from lmsys_unsloth.model import attention
from lmsys_unsloth.model.families import known
from lmsys_unsloth.model.layers.gated_mlp import gated_mlp, recomputes_product
from lmsys_unsloth.model.layers.kernels import Kernels
from lmsys_unsloth.model.layers.linear import linear
from lmsys_unsloth.model.layers.norm import rms_norm
from lmsys_unsloth.model.layers.projections import project_chosen, project_qkv
from lmsys_unsloth.model.layers.rope import RopeTable, apply_rope, rope_frequencies, rope_kind, rope_table
from lmsys_unsloth.model.memory import WORKSPACE, layer_bytes_per_token
from lmsys_unsloth.model.packing import PackedRows

Tables = dict[str | None, RopeTable]
"""Rotary tables by the layers' kind."""


class Decoder(Protocol):
    """Runs a model up to, but without, its LM head."""

    @property
    def model(self) -> nn.Module: ...

    def __call__(self, input_ids: Tensor, lengths: Sequence[int], last: int = 1) -> Tensor:
        """Compute hidden states after the final norm, ``[rows, last, width]``, at each row's last positions.

        ``input_ids`` are concatenated rows, int64 ``[tokens]``, of ``lengths`` tokens.
        """


def causal_lm(model: nn.Module) -> nn.Module:
    """Return the transformers model inside an optional PEFT wrapper."""
    unwrap = getattr(model, "get_base_model", None)
    return cast(nn.Module, unwrap()) if unwrap else model


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype that the model computes in: that of its embeddings, which are never quantised."""
    return cast(torch.dtype, cast(Any, causal_lm(model)).get_input_embeddings().weight.dtype)


class ReferenceDecoder:
    """The model's own forward pass over rows padded on the right, for any causal model of transformers.

    The classes name their parts differently, so these are found through ``base_model`` and their types. No
    attention mask is needed: attention is causal and the padding follows the answer slot, so no position that
    is read attends to padding.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.checkpointed = False
        """Whether every layer keeps only its input for the backward pass of a training."""

    def __call__(self, input_ids: Tensor, lengths: Sequence[int], last: int = 1) -> Tensor:
        padded = pad_sequence(list(torch.split(input_ids, list(lengths))), batch_first=True)
        decoder = cast(Any, causal_lm(self.model)).base_model
        if self.checkpointed:
            self._checkpoint_layers(decoder)
        in_bfloat16 = compute_dtype(self.model) == torch.bfloat16
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=in_bfloat16):
            states = cast(Tensor, decoder(input_ids=padded, use_cache=False).last_hidden_state)
        ends = torch.tensor(list(lengths), device=states.device)[:, None]
        positions = ends - torch.arange(last, 0, -1, device=states.device)
        return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))

    @staticmethod
    def _checkpoint_layers(decoder: nn.Module) -> None:
        """Switch on transformers' checkpointing of layers, which applies in training mode only.

        At every call, because unsloth's trainer sets all layers back to what was chosen when the model was
        loaded. Layers that unsloth checkpoints keep its own function.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        for module in decoder.modules():
            layer = cast(Any, module)
            if isinstance(module, GradientCheckpointingLayer) and not layer.gradient_checkpointing:
                layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
                layer.gradient_checkpointing = True


class FastDecoder:
    """The decoder of a known family on packed rows, computed with the loaded model's own modules.

    Args:
        model: a transformers model of a family in
            :data:`~lmsys_unsloth.model.families.known.FAMILIES`, with or without PEFT adapters and 4-bit
            weights.
        kernels: unsloth's, for CUDA; None for plain PyTorch. Left out where they do not suit the family.

    Raises:
        ValueError: another family, or a variant of one that is computed differently.
    """

    def __init__(self, model: nn.Module, kernels: Kernels | None = None) -> None:
        self.model = model
        base = cast(Any, causal_lm(model))
        self.config, self.decoder = base.config, base.model
        family = known.family_of({"model_type": self.config.model_type})
        if family is None:
            names = ", ".join(known.FAMILIES)
            raise ValueError(f"model_type {self.config.model_type!r}: the fast decoder knows {names}")
        if getattr(self.config, "use_bidirectional_attention", False):
            raise ValueError(
                "use_bidirectional_attention: the fast decoder attends to earlier positions only"
            )
        self.family, self.kernels = family, kernels if family.kernels else None
        self.cap: float | None = getattr(self.config, "attn_logit_softcapping", None)
        self.layers: list[Any] = list(self.decoder.layers)
        trained = [any(p.requires_grad for p in layer.parameters()) for layer in self.layers]
        self.first_trained = trained.index(True) if any(trained) else len(trained)
        self.checkpointed = 0
        """Number of layers, from the first trained one on, that keep only their input for backward."""
        self.neftune_alpha = 0.0
        """Scale of uniform noise on the embeddings in training: alpha / sqrt(tokens * width)
        (arXiv:2310.05914)."""
        self._frozen_states: dict[bytes, Tensor] | None = None
        weight = self.decoder.embed_tokens.weight
        self._rope_kinds = [rope_kind(self.config, index) for index in range(len(self.layers))]
        self._frequencies: dict[str | None, tuple[Tensor, float]] = {}
        for kind in dict.fromkeys(self._rope_kinds):
            frequencies, factor = rope_frequencies(self.config, kind)
            self._frequencies[kind] = frequencies.to(weight.device), factor
        # Rounded to the model's dtype, as it was when Gemma 2 was trained.
        self._embedding_factor = torch.tensor(self.config.hidden_size**0.5, dtype=weight.dtype).item()

    def __call__(self, input_ids: Tensor, lengths: Sequence[int], last: int = 1) -> Tensor:
        rows = PackedRows(tuple(lengths), tuple(lengths), input_ids.device)
        with torch.no_grad():
            tables = self._rope_tables(rows)
            x = self._run_frozen_layers(input_ids, rows, tables)
        last_layer = len(self.layers) - 1
        for index in range(min(self.first_trained, last_layer), last_layer):
            if torch.is_grad_enabled() and index - self.first_trained < self.checkpointed:
                x = cast(Tensor, checkpoint(self._layer, index, x, rows, tables, use_reentrant=False))
            else:
                x = self._layer(index, x, rows, tables)
        x = self._layer(last_layer, x, rows, tables, last=last)
        return self._norm(self.decoder, "norm", x).view(len(lengths), last, -1)

    def _rope_tables(self, rows: PackedRows) -> Tables:
        dtype, tables = self.decoder.embed_tokens.weight.dtype, Tables()
        for kind, (frequencies, factor) in self._frequencies.items():
            cos, sin = rope_table(frequencies, factor, rows.positions, dtype)
            # unsloth's kernel computes in the dtype of the table.
            tables[kind] = (cos, sin) if self.kernels is None else (cos.float(), sin.float())
        return tables

    def keep_frozen_states(self, tokens: int, free_bytes: float) -> bool:
        """Keep each row's input to the first trained layer, which is the same in every epoch, if that pays.

        Args:
            tokens: number of tokens of all rows.
            free_bytes: memory that the states may use.

        Returns:
            Whether they are kept from now on: there are frozen layers, and the states fit.
        """
        weight = self.decoder.embed_tokens.weight
        fits = tokens * weight.shape[1] * weight.element_size() <= free_bytes
        self._frozen_states = {} if self.first_trained > 0 and fits else None
        return self._frozen_states is not None

    def _run_frozen_layers(self, input_ids: Tensor, rows: PackedRows, tables: Tables) -> Tensor:
        """Return the input ``[1, tokens, width]`` of the first trained layer."""
        kept, parts = self._frozen_states, torch.split(input_ids, list(rows.lengths))
        keys = [part.cpu().numpy().tobytes() for part in parts] if kept is not None else []
        if kept is not None and all(key in kept for key in keys):
            return torch.cat([kept[key] for key in keys])[None]
        x = self._embed(input_ids, rows)
        for index in range(min(self.first_trained, len(self.layers) - 1)):
            x = self._layer(index, x, rows, tables)
        if kept is not None:
            kept.update(zip(keys, torch.split(x[0], list(rows.lengths)), strict=True))
        return x

    @property
    def window(self) -> int | None:
        """The shortest sliding window of any layer, in tokens; None if there is none."""
        windows = (self.family.window_of(self.config, index) for index in range(len(self.layers)))
        return min((window for window in windows if window is not None), default=None)

    @property
    def all_checkpointed(self) -> bool:
        """Whether checkpointing more layers would save nothing; the last layer keeps little."""
        return self.checkpointed >= len(self.layers) - self.first_trained - 1

    def activation_bytes(self, row_length: int) -> int:
        """Return the bytes per token that a trained layer keeps for rows of a length, unless checkpointed."""
        layer, dtype = self.layers[min(self.first_trained, len(self.layers) - 1)], compute_dtype(self.model)
        names = [(name.rpartition(".")[2], module) for name, module in layer.named_modules()]
        adapted = {name: module for name, module in names if hasattr(module, "lora_A")}
        trained = [name for name, m in names if name.endswith("_proj") and m.weight.requires_grad]
        dropouts = [part for module in adapted.values() for part in module.lora_dropout.values()]
        rows = PackedRows((row_length,), (row_length,), self.decoder.embed_tokens.weight.device)
        attend = attention.choose_attention(rows, dtype, self.cap)
        return layer_bytes_per_token(
            self.config.to_dict(),
            row_length,
            itemsize=dtype.itemsize,
            ranks=dict.fromkeys(trained, 0)
            | {name: sum(module.r.values()) for name, module in adapted.items()},
            dropout=any(isinstance(part, nn.Dropout) for part in dropouts),
            flash=attend not in (attention.row_by_row, attention.grouped),
            recomputed=recomputes_product(layer.mlp, self.family, dtype, self.kernels),
            grouped=attend is attention.grouped,
        )

    def max_micro_batch_tokens(self, row_length: int, free_bytes: float) -> int:
        """Return the largest micro-batch, in tokens, that fits into ``free_bytes`` without checkpoints."""
        trained = len(self.layers) - self.first_trained
        return int(free_bytes / ((trained + WORKSPACE) * self.activation_bytes(row_length)))

    def checkpoints_needed(self, tokens: int, row_length: int, free_bytes: float) -> int:
        """Return the fewest checkpointed layers with which a micro-batch fits into ``free_bytes``.

        A checkpointed layer keeps its input only. ``row_length`` is the number of tokens of the longest row.
        """
        trained, weight = len(self.layers) - self.first_trained, self.decoder.embed_tokens.weight
        layer, inputs = self.activation_bytes(row_length), weight.shape[1] * weight.element_size()
        for count in range(trained):
            if tokens * (count * inputs + (trained - count + WORKSPACE) * layer) < free_bytes:
                return count
        return trained

    def _embed(self, input_ids: Tensor, rows: PackedRows) -> Tensor:
        """Return embeddings ``[1, tokens, width]``; unsloth's kernels expect the leading dimension."""
        weight = self.decoder.embed_tokens.weight
        x = F.embedding(input_ids, weight)[None]
        if self.neftune_alpha and self.model.training:
            lengths = (rows.offsets[1:] - rows.offsets[:-1])[rows.row_ids]
            scale = self.neftune_alpha / (lengths * weight.shape[1]).float().sqrt()
            x = x + (scale[:, None] * torch.empty_like(x, dtype=torch.float32).uniform_(-1, 1)).to(x.dtype)
        if self.family.scaled_embeddings:
            x = x * self._embedding_factor
        return x

    def _layer(
        self, index: int, x: Tensor, rows: PackedRows, tables: Tables, last: int | None = None
    ) -> Tensor:
        """Compute a layer of ``x`` ``[1, tokens, width]``, for each row's ``last`` positions if given."""
        layer, family, kernels = self.layers[index], self.family, self.kernels
        own, table = layer.self_attn, tables[self._rope_kinds[index]]
        h, q_table = self._norm(layer, family.before_attention, x), table
        if last is None:
            q, k, v = project_qkv(own, h, family, kernels)
        else:
            chosen, rows = rows.select_last(last)
            q, k, v = project_chosen(own, h, chosen, family, kernels)
            x, q_table = x[:, chosen], (table[0][chosen], table[1][chosen])
        if family.qk_norm == "all_heads":
            q, k = self._norm(own, "q_norm", q), self._norm(own, "k_norm", k)
        q, k, v = (states.view(states.shape[1], -1, own.head_dim) for states in (q, k, v))
        if family.qk_norm == "head":
            q, k = self._norm(own, "q_norm", q), self._norm(own, "k_norm", k)
        q, k = apply_rope(q, k, q_table, table, kernels if last is None else None)
        attend = attention.choose_attention(rows, q.dtype, self.cap)
        window = family.window_of(self.config, index)
        heads = attend(q, k, v, rows, own.scaling, self.cap, window).reshape(1, len(q), -1)
        x = x + self._norm(layer, family.after_attention, linear(own.o_proj, heads, kernels))
        h = gated_mlp(layer.mlp, self._norm(layer, family.before_mlp, x), family, kernels)
        return x + self._norm(layer, family.after_mlp, h)

    def _norm(self, parent: nn.Module, name: str | None, x: Tensor) -> Tensor:
        """Apply a norm of ``parent``, if the family has it."""
        if name is None:
            return x
        return rms_norm(getattr(parent, name), x, self.family.norm_weight, self.kernels)
