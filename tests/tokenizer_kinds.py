"""Small tokenizers of the kinds that models have, besides those of :mod:`small_tokenizers`.

They are trained here. Chat templates are written in the manner of the models', not copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from small_tokenizers import (
    LLAMA3_SPLIT,
    add_bos,
    small_gemma2,
    small_llama3,
    train_byte_fallback,
    train_byte_level,
)
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ROLES = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
)
_REPLY = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
THINKING_BY_DEFAULT = (
    f"{_ROLES}{_REPLY}{{% if enable_thinking is defined and enable_thinking is false %}}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""Chat template in the manner of Qwen 3: the model decides whether to begin with ``<think>``, unless told."""
THINKING_ALWAYS = f"{_ROLES}{_REPLY}{{{{ '<think>\n' }}}}{{% endif %}}"
"""Chat template of models that can't be told: it opens a reasoning block."""
_PHI_CHAT = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
_LLAMA2_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '[INST] <<SYS>>\n' + m.content + '\n<</SYS>>\n\n' }}"
    "{% else %}{{ ('' if loop.previtem else '[INST] ') + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)
_MISTRAL_CHAT = (
    "{{ bos_token + '[INST] ' }}{% for m in messages %}{{ m.content }}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}{{ '[/INST]' }}"
)


def tokenizer(kind: str) -> Any:
    """One of :data:`KINDS`."""
    return KINDS[kind]()


@functools.cache
def gpt2() -> PreTrainedTokenizerFast:
    """Byte-level BPE; one special token, which is EOS and not added as BOS; no padding token, no chat."""
    backend = train_byte_level(_GPT2_SPLIT)
    backend.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


@functools.cache
def qwen3() -> PreTrainedTokenizerFast:
    """Byte-level BPE of NFC text, digits one by one; no BOS; ``<think>`` is added, but not special."""
    backend = train_byte_level(LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}"))
    backend.normalizer = normalizers.NFC()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(spelling, normalized=False) for spelling in special])
    backend.add_tokens([AddedToken(spelling, normalized=False) for spelling in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=THINKING_BY_DEFAULT,
    )  # fmt: skip


@functools.cache
def phi4() -> PreTrainedTokenizerFast:
    """As tiktoken's: words of the vocabulary are not merged, digits in threes; markup absorbs white space."""
    backend = train_byte_level(LLAMA3_SPLIT, ignore_merges=True)
    special = ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>")
    backend.add_special_tokens(
        [AddedToken(spelling, lstrip=True, rstrip=True, normalized=False) for spelling in special]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|im_end|>",
        pad_token="<|endoftext|>", chat_template=_PHI_CHAT,
    )  # fmt: skip


@functools.cache
def llama2() -> PreTrainedTokenizerFast:
    """SentencePiece's BPE, a space before each text; BOS; no padding token; ``[INST]`` is plain text."""
    backend = train_byte_fallback(["<unk>", "<s>", "</s>"])
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentencepiece(backend, ["<unk>", "<s>", "</s>"], _LLAMA2_CHAT)


@functools.cache
def mistral() -> PreTrainedTokenizerFast:
    """SentencePiece's BPE, a space before the first text of a row only; BOS; ``[INST]`` is special."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    backend = train_byte_fallback(special)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _sentencepiece(backend, special, _MISTRAL_CHAT)


def _sentencepiece(backend: Any, special: list[str], chat_template: str) -> PreTrainedTokenizerFast:
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.add_special_tokens([AddedToken(spelling, normalized=False) for spelling in special])
    backend.post_processor = add_bos(backend, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        chat_template=chat_template,
    )  # fmt: skip


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": gpt2, "qwen3": qwen3, "phi4": phi4, "llama2": llama2, "mistral": mistral,
    "llama3": small_llama3, "gemma2": small_gemma2,
}  # fmt: skip
"""Functions that make a tokenizer, by the model whose kind it is."""
