"""``format=gguf``: one file for llama.cpp, with the model's weights and vocabulary.

Names come from the ``gguf`` package. What llama.cpp expects otherwise than transformers stores it is what its
own converter does (``convert_hf_to_gguf.py``): rows of queries and keys of Llama in the order of the original
rotation, Gemma's norm weights plus 1, Llama 3.1's rotary scaling as a tensor of factors.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.predict.sources import GGUF

log = logging.getLogger(__name__)

ARCHITECTURES = {
    "llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "gemma2": "GEMMA2",
}  # fmt: skip
"""llama.cpp's architectures by ``model_type``."""

TYPES = ("bf16", "f16", "f32", "q8_0")
"""Number types of matrices: ``type=`` of the command."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens."""


def write(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path, type: str) -> None:
    """Write ``model.gguf``.

    Args:
        state: weights by their names in transformers; tied weights once.
        config: the model's ``config.json``.
        folder: where the file is written, with the tokenizer in it.
        type: one of :data:`TYPES`.

    Raises:
        UserError: llama.cpp does not know the architecture, or computes it with other constants.
    """
    import gguf

    name = ARCHITECTURES.get(str(config["model_type"]))
    if name is None:
        raise UserError(
            f"format=gguf: writes {', '.join(ARCHITECTURES)}, not {config['model_type']}.\n"
            "  Export format=merged16, and convert it with llama.cpp's convert_hf_to_gguf.py."
        )
    _require_same_constants(config)
    arch = gguf.MODEL_ARCH[name]
    writer = gguf.GGUFWriter(folder / GGUF, gguf.MODEL_ARCH_NAMES[arch], use_temp_file=True)
    writer.add_type("model")
    _add_settings(writer, config, type)
    _add_vocabulary(writer, folder, int(config["vocab_size"]))
    names = gguf.get_tensor_name_map(arch, int(config["num_hidden_layers"]))
    if (factors := rotary_factors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    for name, tensor in state.items():
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise UserError(f"format=gguf: llama.cpp has no tensor for {name}; export format=merged16.")
        values = _as_llama_cpp_has_it(name, tensor.float().cpu(), config).numpy()
        wanted = gguf.GGMLQuantizationType[type.upper() if tensor.dim() > 1 else "F32"]
        if wanted == gguf.GGMLQuantizationType.Q8_0 and values.shape[-1] % 32:
            wanted = gguf.GGMLQuantizationType.F16
        writer.add_tensor(written, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_settings(writer: Any, config: Mapping[str, Any], type: str) -> None:
    import gguf

    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    head = int(config.get("head_dim") or width // heads)
    rope = config.get("rope_parameters") or {}
    writer.add_name(str(config.get("model_type")))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(width)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_file_type(int(gguf.LlamaFileType[f"MOSTLY_{type.upper()}" if type != "f32" else "ALL_F32"]))
    if type == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(float(config["attn_logit_softcapping"]))
        writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
        writer.add_sliding_window(int(config["sliding_window"]))


def _require_same_constants(config: Mapping[str, Any]) -> None:
    """Raise an error where llama.cpp has a constant that this model's configuration gives otherwise."""
    if config["model_type"] == "gemma2":
        layers = int(config["num_hidden_layers"])
        by_heads = int(config["hidden_size"]) // int(config["num_attention_heads"])
        own = float(config["query_pre_attn_scalar"])
        assumed = by_heads if layers == 46 else int(config["head_dim"])  # 46 layers: Gemma 2 27B
        if own != assumed:
            raise UserError(
                f"format=gguf: llama.cpp scales queries by 1 / sqrt({assumed}), but query_pre_attn_scalar = "
                f"{own:g}; export format=merged16."
            )
    kind = (config.get("rope_parameters") or {}).get("rope_type", "default")
    if kind not in ("default", "llama3"):
        raise UserError(f"format=gguf: rope_type = {kind} is not written; export format=merged16.")


def rotary_factors(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Factors ``[head_dim / 2]`` by which llama.cpp divides the rotary frequencies; None without scaling.

    Those of Llama 3.1 (``rope_type: llama3``): 1 for high frequencies, ``factor`` for low ones, and in
    between the frequency is interpolated.
    """
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return None
    head = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    base, factor = float(rope["rope_theta"]), float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    length = float(rope["original_max_position_embeddings"])
    wave = 2 * math.pi * base ** (np.arange(0, head, 2) / head)
    smooth = np.clip((length / wave - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), dtype=np.float32)


def _as_llama_cpp_has_it(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    kind = str(config["model_type"])
    if kind == "gemma2" and name.endswith("norm.weight"):
        return tensor + 1
    if ARCHITECTURES[kind] == "LLAMA" and ".self_attn." in name:
        heads = int(config["num_attention_heads"])
        if ".k_proj." in name:
            heads = int(config.get("num_key_value_heads") or heads)
        if ".q_proj." in name or ".k_proj." in name:
            return interleave_halves(tensor, heads)
    return tensor


def interleave_halves(tensor: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from two halves to pairs, as the original rotation takes them.

    >>> import torch
    >>> interleave_halves(torch.arange(4), heads=1).tolist()
    [0, 2, 1, 3]
    """
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _add_vocabulary(writer: Any, folder: Path, size: int) -> None:
    """Write the tokens of ``tokenizer.json``; entries of the embeddings without a token are unused ones."""
    import gguf

    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, added = stored["model"], stored.get("added_tokens") or []
    by_id = {int(i): token for token, i in model["vocab"].items()}
    special = {int(token["id"]): token for token in added}
    by_id |= {i: token["content"] for i, token in special.items()}
    tokens = [by_id.get(i, f"[UNUSED{i}]") for i in range(size)]
    pieces = bool(model.get("byte_fallback"))
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    if not pieces:
        writer.add_tokenizer_pre(pre_tokenizer(stored))
    writer.add_token_list(tokens)
    writer.add_token_types([_token_type(i, by_id, special, pieces) for i in range(size)])
    if pieces:
        # Pieces are merged in the order of their ids, as those of Gemma and Llama 2 were learned.
        writer.add_token_scores([-float(i) for i in range(size)])
        writer.add_add_space_prefix(False)
    else:
        merges = model["merges"]
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    vocabulary = gguf.SpecialVocab(folder, load_merges=False, n_vocab=size)
    vocabulary.add_to_gguf(writer, quiet=True)


def _token_type(
    i: int, by_id: Mapping[int, str], special: Mapping[int, Mapping[str, Any]], bytes_apart: bool
) -> int:
    if i not in by_id:
        return _UNUSED
    if i in special:
        return _CONTROL if special[i].get("special") else _USER_DEFINED
    text = by_id[i]
    return _BYTE if bytes_apart and len(text) == 6 and text.startswith("<0x") else _NORMAL


def pre_tokenizer(stored: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rule by which a BPE tokenizer splits text before merging."""
    text = json.dumps(stored.get("pre_tokenizer"))
    if "individual_digits" in text:
        return "smollm"
    if "{1,3}" in text:
        return "llama-bpe"
    if "\\\\p{N}|" in text:
        return "qwen2"
    log.warning("llama.cpp has no name for how this tokenizer splits text: send it token ids, not text")
    return "default"
