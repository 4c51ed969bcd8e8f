"""A tokenizer as rows need it: conversation text stays text, and special tokens are placed by hand.

Encoding a conversation the ordinary way lets it write control tokens: ``<|eot_id|>`` in a user's
message would end the turn. :class:`Vocabulary` never matches special tokens in text; the template's
own are looked up by name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.core.errors import UserError

Ids = NDArray[np.int32]


class Vocabulary:
    """Plain text → token ids, and the ids of special tokens.

    Args:
        tokenizer: a fast tokenizer of transformers; it is left as it is.

    Raises:
        UserError: the tokenizer is not a fast one, or can't keep text from becoming a special token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is None:
            raise UserError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; this tool needs one.\n"
                "  Use a model folder that has a tokenizer.json."
            )
        added = self._backend.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {t.content: i for i, t in added.items() if t.special}
        """Special tokens by spelling."""
        for spelling in tokenizer.all_special_tokens:
            self.special_tokens[spelling] = tokenizer.convert_tokens_to_ids(spelling)
        self.bos_id: int | None = _bos_by_convention(tokenizer)
        """First id of every row; None where the tokenizer itself starts texts without one."""
        self.eos_id: int | None = tokenizer.eos_token_id
        self.longest_token: int = max(map(len, self._backend.get_vocab()))
        """No token stands for more characters than this."""
        self._unencodable, self._replacement = self._probe_characters()
        self._check_special_tokens_split()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, no special tokens among them; on all cores."""
        with self._plain_text() as backend:
            encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Character span of each token of each text, ``(tokens, 2)``; two tokens may share a character."""
        with self._plain_text() as backend:
            encodings = backend.encode_batch(texts, add_special_tokens=False)
        return [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two tokenizers exactly when they are defined alike."""
        with self._plain_text() as backend:
            return hashlib.sha256(backend.to_str().encode()).hexdigest()

    @contextmanager
    def _plain_text(self) -> Iterator[Any]:
        """The tokenizer set to split special tokens like any other text, and to encode all of a text."""
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
        """Text of ids, special tokens included."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def clean(self, text: str) -> str:
        """The text with characters that can't be encoded replaced, one for one (U+FFFD).

        Those are lone surrogates, and characters for which the vocabulary has no bytes:
        SmolLM2 would turn U+0004 into its end-of-text token, or leave it out.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            text = _SURROGATE.sub("\ufffd", text)
        return self._unencodable.sub(self._replacement, text) if self._unencodable else text

    def _probe_characters(self) -> tuple[re.Pattern[str] | None, str]:
        """Characters that come out broken, as nothing or as a special token, by their first UTF-8 byte."""
        probes = [(code, code) for code in range(0x80)] + _LEAD_BYTE_RANGES
        missing = [(first, last) for first, last in probes if not self._encodable(chr(first))]
        replacement = next((c for c in ("\ufffd", "?") if self._encodable(c)), "")
        ranges = "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in missing)
        return (re.compile(f"[{ranges}]") if ranges else None), replacement

    def _encodable(self, character: str) -> bool:
        ids = self.encode([character])[0].tolist()
        whole = "\ufffd" not in self.decode(ids) or character == "\ufffd"
        return bool(ids) and whole and not set(ids) & set(self.special_tokens.values())

    def _check_special_tokens_split(self) -> None:
        special_ids = set(self.special_tokens.values())
        special_ids.discard(self._tokenizer.unk_token_id)  # stands for any text that has no token
        for spelling, ids in zip(self.special_tokens, self.encode(list(self.special_tokens)), strict=True):
            if special_ids & set(ids.tolist()):
                raise UserError(
                    f"this tokenizer turns the plain text {spelling!r} into a special token whatever it is "
                    "told,\n  so a conversation could forge the model's markup. "
                    "Use the model's original tokenizer."
                )


_SURROGATE = re.compile("[\ud800-\udfff]")


def _lead_byte_ranges() -> list[tuple[int, int]]:
    """First and last code point for each first byte of a UTF-8 character of two or more bytes."""
    two = [(lead << 6, (lead << 6) + 0x3F) for lead in range(0x02, 0x20)]
    three = [(max(lead << 12, 0x800), (lead << 12) + 0xFFF) for lead in range(0x10) if lead != 0xD]
    four = [(max(lead << 18, 0x10000), min((lead << 18) + 0x3FFFF, 0x10FFFF)) for lead in range(5)]
    return [*two, *three, (0xD000, 0xD7FF), *four]


_LEAD_BYTE_RANGES = _lead_byte_ranges()


def _bos_by_convention(tokenizer: Any) -> int | None:
    first = tokenizer("a").input_ids[:1]
    bos = tokenizer.bos_token_id
    return bos if bos is not None and first == [bos] else None
