"""Tokenisation that never turns text of a conversation into special tokens.

By default, a tokenizer encodes ``<|eot_id|>`` in a user's message as the token that ends the turn.
:class:`Vocabulary` encodes it as ordinary text; special tokens of the template are looked up by name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.prompting.rendering import Segment

Ids = NDArray[np.int32]
"""``[tokens]``."""


class Vocabulary:
    """Encodes plain text, and knows the special tokens of a tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers; it is not modified.

    Raises:
        UserError: the tokenizer is not a fast one, or encodes text as special tokens in any case.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; this tool needs one.\n"
                "  Use a model folder that has a tokenizer.json."
            )
        added = backend.get_added_tokens_decoder()
        chat_template = str(getattr(tokenizer, "chat_template", None) or "")
        self.special_tokens: dict[str, int] = {
            t.content: i for i, t in added.items() if t.special or _is_markup(t.content, chat_template)
        }
        """Ids by spelling of special tokens, and of other added tokens that are markup of the chat template:
        Qwen 3's ``<think>``, unlike Gemma's line breaks and HTML tags."""
        for spelling in tokenizer.all_special_tokens:
            self.special_tokens[spelling] = tokenizer.convert_tokens_to_ids(spelling)
        self._strip_before = {t.content for t in added.values() if t.lstrip}
        self._strip_after = {t.content for t in added.values() if t.rstrip}
        self._backend, self._opening_space = _for_parts_of_texts(backend, self.special_tokens)
        names = {i: spelling for spelling, i in self.special_tokens.items()}
        first = takewhile(names.__contains__, tokenizer("a").input_ids)
        self.bos: dict[str, int] = {names[i]: i for i in first}
        """Ids by spelling of the special tokens that the tokenizer itself puts before a text, and that every
        row starts with: BOS (Llama 3, Gemma 2), several (GLM 4: ``[gMASK]<sop>``) or none (Qwen)."""
        self.eos_id: int | None = tokenizer.eos_token_id
        self.longest_token: int = max(map(len, self._backend.get_vocab()))
        """Maximum characters that one token stands for."""
        self._unencodable, self._replacement = self._probe_characters()
        self._check_special_tokens_split()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Encode each text without special tokens, in parallel."""
        with self._plain_text() as backend:
            encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def plain_texts(self, segments: Sequence[Segment]) -> list[str]:
        """Return the plain texts of a rendered row as the tokenizer reads them in the whole.

        Special tokens of some tokenizers absorb the white space beside them (Phi 4), and some tokenizers
        put a space before a text, but not after a special token in it (Mistral 7B v0.3).
        """
        texts = []
        for i, (text, special) in enumerate(segments):
            if special:
                continue
            if i == 0 and self._opening_space and text and text[0] not in " ▁":
                text = " " + text
            if i > 0 and segments[i - 1].text in self._strip_after:
                text = text.lstrip()
            if i + 1 < len(segments) and segments[i + 1].text in self._strip_before:
                text = text.rstrip()
            texts.append(text)
        return texts

    def offsets(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return token offsets ``[tokens, 2]`` of each text: the first character, and that after the last.

        Tokens may share a character.
        """
        with self._plain_text() as backend:
            encodings = backend.encode_batch(texts, add_special_tokens=False)
        return [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]

    @cached_property
    def fingerprint(self) -> str:
        """Compute a SHA-256 of the tokenizer's definition."""
        with self._plain_text() as backend:
            definition = f"{self._opening_space} {backend.to_str()}"
        return hashlib.sha256(definition.encode()).hexdigest()

    @contextmanager
    def _plain_text(self) -> Iterator[Any]:
        """The tokenizer, set to split special tokens like other text, and not to truncate or pad."""
        backend = self._backend
        before = backend.encode_special_tokens, backend.truncation, backend.padding
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        try:
            yield backend
        finally:
            backend.encode_special_tokens = before[0]
            if before[1]:
                backend.enable_truncation(**before[1])
            if before[2]:
                backend.enable_padding(**before[2])

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids, including special tokens."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def piece(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it: ``"ĠA"`` or ``"▁A"`` for A after a space."""
        return str(self._backend.id_to_token(token_id))

    def clean(self, text: str) -> str:
        """Replace each character that can't be encoded by U+FFFD.

        Those are lone surrogates, and characters whose bytes the vocabulary lacks: SmolLM2 would encode
        U+0004 as its end-of-text token, or leave it out.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            text = _SURROGATE.sub("\ufffd", text)
        return self._unencodable.sub(self._replacement, text) if self._unencodable else text

    def _probe_characters(self) -> tuple[re.Pattern[str] | None, str]:
        """Pattern of the characters that the vocabulary can't encode, and what to replace them by.

        Whether it can is tried for one character of each first UTF-8 byte.
        """
        ranges = zip(_CODE_POINTS, [*_CODE_POINTS[1:], 0x110000], strict=True)
        missing = [(first, end) for first, end in ranges if not self._encodable(chr(first))]
        replacement = next((c for c in ("\ufffd", "?") if self._encodable(c)), "")
        characters = "".join(f"{re.escape(chr(first))}-{re.escape(chr(end - 1))}" for first, end in missing)
        return (re.compile(f"[{characters}]") if missing else None), replacement

    def _encodable(self, character: str) -> bool:
        ids = self.encode([character])[0].tolist()
        whole = "\ufffd" not in self.decode(ids) or character == "\ufffd"
        return bool(ids) and whole and not set(ids) & set(self.special_tokens.values())

    def _check_special_tokens_split(self) -> None:
        special_ids = set(self.special_tokens.values())
        special_ids.discard(self._tokenizer.unk_token_id)  # the ordinary id of text that has no token
        for spelling, ids in zip(self.special_tokens, self.encode(list(self.special_tokens)), strict=True):
            if special_ids & set(ids.tolist()):
                raise UserError(
                    f"this tokenizer encodes the plain text {spelling!r} as a special token in any "
                    "case,\n  so a conversation could contain the model's markup. "
                    "Use the model's original tokenizer."
                )


_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKUP = re.compile(r"<.+>|\[.+\]")


def _is_markup(spelling: str, chat_template: str) -> bool:
    return _MARKUP.fullmatch(spelling) is not None and spelling in chat_template


def _for_parts_of_texts(backend: Any, special_tokens: Collection[str]) -> tuple[Any, bool]:
    """Prepare a tokenizer for encoding the parts of a text one by one.

    Returns:
        The tokenizer, or a copy for which all of ``special_tokens`` are special and no text is the first
        of a row; and whether the tokenizer itself puts a space before the first one only.
    """
    plain = [t for t in backend.get_added_tokens_decoder().values() if not t.special]
    rules = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else {}
    opening_space = any(step.get("prepend_scheme") == "first" for step in _steps(rules))
    if not opening_space and not any(token.content in special_tokens for token in plain):
        return backend, False
    definition = json.loads(backend.to_str())
    for token in definition["added_tokens"]:
        token["special"] |= token["content"] in special_tokens
    for step in _steps(definition["pre_tokenizer"] or {}):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    return Tokenizer.from_str(json.dumps(definition)), opening_space


def _steps(rules: dict[str, Any]) -> list[dict[str, Any]]:
    """A pre-tokenizer's definition, and those of its parts."""
    return [rules, *rules.get("pretokenizers", [])]


_CODE_POINTS = [
    *range(0x80),
    *range(0x80, 0x800, 0x40),
    *(0x800, *range(0x1000, 0x10000, 0x1000)),
    *(0x10000, *range(0x40000, 0x110000, 0x40000)),
]
"""The first code point of each first byte in UTF-8."""
