"""What distinguishes the model families that the fast decoder computes; data, read wherever it matters.

Sizes, biases, caps and the kind of rotary embedding are in a model's own configuration and modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

NormWeight = Literal["after_rounding", "in_float32", "one_plus"]


@dataclass(frozen=True)
class Family:
    """A decoder family of ``transformers``: Llama with the differences that the fields state.

    Each layer computes ``x += after_attention(attention(before_attention(x)))`` and then
    ``x += after_mlp(mlp(before_mlp(x)))``, where norms without a name are left out.
    """

    name: str
    """``model_type`` in ``config.json``."""
    norm_weight: NormWeight = "after_rounding"
    """How an RMS norm applies its weight. ``after_rounding``: to the normed input in its own dtype.
    ``in_float32``: before rounding to it. ``one_plus``: the same, with one plus the weight."""
    before_attention: str | None = "input_layernorm"
    """Name of a norm in a layer, likewise the next three."""
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    qk_norm: Literal["none", "head", "all_heads"] = "none"
    """Norms of queries and keys, ``q_norm`` and ``k_norm``: none, of each head, or of all heads together."""
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Names of the projections of queries, keys and values; a single one computes all three in this order."""
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    """Names of the two input projections of the MLP; a single one computes both in this order."""
    scaled_embeddings: bool = False
    """Whether embeddings are multiplied by the square root of the width."""
    caps: bool = False
    """Whether models of this family need ``final_logit_softcapping`` and ``attn_logit_softcapping``."""
    tied: bool = False
    """Whether the LM head is tied to the embeddings where ``config.json`` does not say."""
    overflows_in_float16: bool = False
    """Whether activations exceed the range of float16."""
    window: Literal["none", "by_layer", "all_layers"] = "by_layer"
    """Layers with the sliding window of ``sliding_window``: none, those that ``layer_types`` says, or all."""
    kernels: bool = True
    """Whether unsloth's CUDA kernels compute the layers; otherwise plain PyTorch does."""

    def window_of(self, config: Any, layer: int) -> int | None:
        """Return the sliding window of a layer in tokens, from the model's configuration; None for none."""
        window: int | None = getattr(config, "sliding_window", None)
        if window is None or self.window == "none":
            return None
        if self.window == "all_layers":
            return window
        kinds = getattr(config, "layer_types", None)
        return window if kinds is not None and kinds[layer] == "sliding_attention" else None

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of all linear layers of a decoder layer."""
        return (*self.qkv, "o_proj", *self.gate_up, "down_proj")

    def adapted(self, names: Sequence[str]) -> list[str]:
        """Return the names of the linear layers that Llama's ``names`` (``q_proj``, say) stand for here."""
        own = dict(zip(("q_proj", "k_proj", "v_proj"), 3 * self.qkv, strict=False))
        own |= dict(zip(("gate_proj", "up_proj"), 2 * self.gate_up, strict=False))
        return list(dict.fromkeys(own.get(name, name) for name in names))
