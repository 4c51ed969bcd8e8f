"""Tiny random models (float32, eager attention) with the real architectures' flags; rounding tolerances."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from factories import head_config, train_config
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from lmsys_unsloth.model.answer_head import AnswerHead, attach_head
from lmsys_unsloth.model.batch import Batch, collate
from lmsys_unsloth.model.decoder import Decoder, FastDecoder
from lmsys_unsloth.prompting.answer_tokens import AnswerIds
from lmsys_unsloth.train.losses import answer_loss

VOCABULARY = 300
Architecture = Literal["llama", "gemma2"]
ANSWERS = ((11,), (29,), (173,))
LONG_ANSWERS = ((11,), (29, 7), (173, 5, 250))
ARCHITECTURES: tuple[Architecture, ...] = ("llama", "gemma2")
EOS = 2
NO_TARGET = (0.0, 0.0, 0.0)


def tolerance(
    dtype: torch.dtype = torch.float32,
    *,
    terms: int = 128,
    products: int = 4,
    passes: int = 1,
    scale: float = 1.0,
) -> float:
    """Bound on the difference that rounding makes between two ways to compute the same numbers.

    The rounding errors of a sum of ``n`` terms stay below ``λ √n u`` relative to the size of its terms with
    probability ``1 - 2 exp(-λ² / 2)``, where ``u`` is half the machine epsilon of the dtype (Higham and Mary
    2019, doi:10.1137/18M1226312); here ``λ = 4``. Both ways have such errors, hence the whole epsilon, and
    those of sums that feed into each other add up. The bound holds for any CPU, number of threads and order
    of summation. What is computed in the same way must be equal, without a tolerance.

    Args:
        dtype: of the numbers.
        terms: length of the longest sum; the default is the width of a tiny model's MLP.
        products: number of sums that feed into each other; the default is a tiny model's number of layers.
        passes: 2 for gradients, which pass through the model twice.
        scale: size of the terms of the sums.
    """
    return 4 * math.sqrt(terms) * torch.finfo(dtype).eps * products * passes * scale


def tiny_model(architecture: Architecture, **changes: Any) -> nn.Module:
    """Llama 3-like (own head, grouped queries, scaled RoPE) or Gemma 2-like (tied, capped, sliding window).

    Weights are larger than usual at initialisation, so that caps and scales make a visible difference.
    """
    torch.manual_seed(0)
    common: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    if architecture == "llama":
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
        settings = {**common, "rope_parameters": rope, "tie_word_embeddings": False, **changes}
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**settings))
    else:
        settings = {
            **common,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
            "sliding_window": 8,
            "query_pre_attn_scalar": 32,
            "tie_word_embeddings": True,
            **changes,
        }
        model = Gemma2ForCausalLM(Gemma2Config(**settings))
    generator, spread = torch.Generator().manual_seed(1), 0.25 if architecture == "llama" else 0.5
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, spread, generator=generator)
    return model.float().eval()


@dataclass
class Kept:
    """Bytes that autograd keeps for the backward pass."""

    bytes: int = 0


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[Kept]:
    """Count what forward passes in the block keep: each storage once, and the model's own weights not at all.

    The results must be held until the end of the block, or a freed storage could be counted again.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = Kept()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def save_tiny_llama(folder: Path) -> Path:
    """Save a tiny random Llama with SmolLM2's vocabulary and tokenizer as a local model folder."""
    from lmsys_unsloth.model import smollm2

    smollm2.tokenizer().save_pretrained(folder)
    return save_random_model("llama", folder, width=64, layers=2)


def save_word_tokenizer(folder: Path, size: int) -> None:
    """Save a tokenizer whose words are named after their ids: ``w17``."""
    backend = Tokenizer(WordLevel({f"w{n}": n for n in range(size)}, unk_token="w2"))
    special = dict(bos_token="w0", eos_token="w1", pad_token="w2")
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)


def save_random_model(architecture: Architecture, folder: Path, *, width: int, layers: int) -> Path:
    """Save a random model with SmolLM2's vocabulary size as a local model folder without tokenizer."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=49152, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=width // 4, max_position_embeddings=8192,
        tie_word_embeddings=True, pad_token_id=2,
    )  # fmt: skip
    model: Any
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**settings))
    else:
        model = Gemma2ForCausalLM(Gemma2Config(**settings, query_pre_attn_scalar=width // 4))
    model.save_pretrained(folder)
    return folder


def random_rows(count: int = 6, *, longest: int = 40, seed: int = 0) -> list[Any]:
    """Token ids of rows of different lengths, none of them padding."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, longest + 1, (count,), generator=random)
    return [torch.randint(3, VOCABULARY, (int(n),), generator=random).numpy() for n in lengths]


def reference(model: Any, ids: np.ndarray, answers: AnswerIds = ANSWERS) -> torch.Tensor:
    """The answers' probabilities by transformers' forward pass on the row alone, without padding."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(ids)[None]).logits[0, -1].float()
    return logits[[answer[0] for answer in answers]].softmax(-1)


def probabilities(model: Any, rows: list[np.ndarray], decoder: Any = FastDecoder) -> torch.Tensor:
    """The three probabilities of each row ``[rows, 3]``, all rows in one batch."""
    with torch.no_grad():
        batch = collate(rows, [NO_TARGET] * len(rows))
        return AnswerHead(model, head_config(), ANSWERS).probabilities(decoder(model), batch)


def loss_of(
    decoder: Decoder, batch: Batch, kind: str = "answers", answers: AnswerIds = ANSWERS
) -> torch.Tensor:
    """The summed loss of a batch with ``head=lm``."""
    attach_head(decoder.model, head_config(), answers, eos_id=EOS)
    return answer_loss(decoder, batch, train_config(loss=kind))


def with_adapters(model: Any, **changes: Any) -> Any:
    """Add adapters that change the results: B is drawn at random instead of zero."""
    torch.manual_seed(3)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **changes}
    adapted = get_peft_model(model, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    return adapted.eval()
