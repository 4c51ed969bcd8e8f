"""Small tokenizers, trained here, with the properties of Llama 3's and Gemma 2's that prompts depend on.

They make the tests of prompts independent of files that the project does not contain. What matters of the
real tokenizers is copied from their ``tokenizer.json`` and ``tokenizer_config.json``: how text is split,
special tokens, BOS, padding and the chat template. SmolLM2's tokenizer comes with a Python package, so the
tests use the real one.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from factories import CONF, prompt_config
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from lmsys_unsloth.model import smollm2
from lmsys_unsloth.prompting.encoding import RowEncoder

TEMPLATES = tuple(sorted(path.stem for path in (CONF / "prompt").glob("v*.yaml")))
"""Names of the templates in ``conf/prompt``."""
CHAT_TEMPLATES = tuple(name for name in TEMPLATES if prompt_config(name).chat)
"""Those whose text contains chat markup."""
SMALL_TOKENIZERS = ("small-llama3", "small-gemma2", "smollm2")
"""Names for :func:`tokenizer` and :func:`encoder`."""

WORDS = """
The Tie is a Tie. To be or not to be: That is the question. Then Take Time, Tell Them, Tie That.
Answer A, B or C? A is it. B is it. C is it. a or b, or tie: a tie, b, tie, a. It is a tie; is a Tie.
Which of the following chatbots did a better job responding to the user's request? Or were they equal?
~~~~~~~~~~ CONVERSATION WITH BOT A ~~~~~~~~~~ ========== ---- .... 100 123 145 200 678
### User: "Hello, 12 345"

### Bot A response: "Hi!"

### Best response: A
### Answer
A
### Answer
B
### Answer
C
### Answer
tie


Der Fluß fließt über Wien; où est la forêt?
    Привет,    как дела?


川の流れは速い。
"""
"""Text to train on. `` T`` is so frequent that it is merged before ``Tie``, which is therefore two tokens."""

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_GEMMA2_CHAT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


def tokenizer(name: str) -> Any:
    """One of :data:`SMALL_TOKENIZERS`."""
    return {"small-llama3": small_llama3, "small-gemma2": small_gemma2, "smollm2": _smollm2}[name]()


@functools.cache
def encoder(tokenizer_name: str, template_name: str, max_tokens: int | None = None) -> RowEncoder:
    """A template of ``conf/prompt`` with one of :data:`SMALL_TOKENIZERS`."""
    changes = {} if max_tokens is None else {"max_tokens": max_tokens}
    return RowEncoder(tokenizer(tokenizer_name), prompt_config(template_name, **changes))


@functools.cache
def small_llama3() -> PreTrainedTokenizerFast:
    """Byte-level BPE; BOS is added, there is no padding token, and the chat template has a system role."""
    backend = train_byte_level(LLAMA3_SPLIT, ignore_merges=True)
    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")
    bos, *_, eos = special = [f"<|{name}|>" for name in names]
    backend.add_special_tokens([AddedToken(spelling, normalized=False) for spelling in special])
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), add_bos(backend, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, chat_template=_LLAMA3_CHAT
    )


@functools.cache
def small_gemma2() -> PreTrainedTokenizerFast:
    """BPE with byte fallback; BOS is added, padding is on the left, and there is no system role.

    Spaces become ``▁``. Runs of line breaks and of spaces are added tokens that are not special.
    """
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    runs = ["\n" * n for n in range(1, 6)] + ["▁" * n for n in range(2, 6)]
    backend = train_byte_fallback([*special, *runs])
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken(spelling, normalized=False) for spelling in special])
    backend.add_tokens([AddedToken(run, normalized=False) for run in runs])
    backend.post_processor = add_bos(backend, "<bos>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>",
        padding_side="left", chat_template=_GEMMA2_CHAT,
    )  # fmt: skip


def train_byte_level(split: str, ignore_merges: bool = False) -> Tokenizer:
    """Byte-level BPE without special tokens, trained on :data:`WORDS`; ``split`` matches one word."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), byte_level]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [WORDS], BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def train_byte_fallback(first: list[str]) -> Tokenizer:
    """BPE as SentencePiece's, trained on :data:`WORDS`: ``first``, then a token for each byte, then pieces.

    It has neither normalizer nor pre-tokenizer nor decoder.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    ascii_characters = [chr(code) for code in range(0x21, 0x7F)]
    trained.train_from_iterator(
        WORDS.split("\n"), BpeTrainer(vocab_size=400, initial_alphabet=ascii_characters, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = dict.fromkeys([*first, *byte_tokens, *sorted(model["vocab"], key=model["vocab"].get)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in model["merges"]]
    return Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def add_bos(backend: Tokenizer, bos: str) -> processors.TemplateProcessing:
    """Put ``bos`` before each text."""
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
    )


@functools.cache
def _smollm2() -> PreTrainedTokenizerFast:
    return smollm2.tokenizer()
