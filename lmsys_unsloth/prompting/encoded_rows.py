"""Encoded rows on disk: made once, kept in the cache folder, and read when they are needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import overload

import numpy as np
import pyarrow as pa

from lmsys_unsloth.config import placeholders
from lmsys_unsloth.core import cache
from lmsys_unsloth.core.progress import progress as progress_bar
from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.prompting import answer_tokens, budget, encoding, rendering, tokenization, truncation
from lmsys_unsloth.prompting.encoding import SAMPLE_TURNS, EncodedRow, RowEncoder, chunks

_COUNTS = ("n_turns_kept", "n_characters", "n_cut")
_SCHEMA = pa.schema(
    {
        "text": pa.large_string(),
        "input_ids": pa.large_list(pa.int32()),
        **dict.fromkeys(_COUNTS, pa.int64()),
    }
)


class EncodedRows(Sequence[EncodedRow]):
    """Encoded rows of a memory-mapped table; each is made when it is asked for.

    Args:
        rows: the rows that were encoded.
        table: their texts, ids and counts.
    """

    def __init__(self, rows: Sequence[Comparison], table: pa.Table) -> None:
        self._rows, self._table = rows, table
        parts = table["input_ids"].chunks
        self._ids = [part.values.to_numpy() for part in parts]
        self._offsets = [part.offsets.to_numpy() for part in parts]
        self._starts = np.cumsum([0, *map(len, parts)])
        self._counts = np.stack([table[name].to_numpy() for name in _COUNTS], axis=1)
        self.token_counts: list[int] = np.concatenate([np.diff(each) for each in self._offsets]).tolist()
        """Number of tokens of each row."""

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...
    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = range(len(self))[index]  # IndexError beyond the end
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        inside = row - int(self._starts[part])
        start, end = self._offsets[part][inside : inside + 2]
        text = self._table["text"].chunk(part)[inside].as_py()
        return EncodedRow(self._rows[row], text, self._ids[part][start:end], *self._counts[row].tolist())


def token_counts(rows: Sequence[EncodedRow]) -> list[int]:
    """Number of tokens of each row; of :class:`EncodedRows`, without reading them."""
    return rows.token_counts if isinstance(rows, EncodedRows) else [len(row.input_ids) for row in rows]


def encode_cached(
    encoder: RowEncoder, rows: Sequence[Comparison], progress: bool = False
) -> Sequence[EncodedRow]:
    """Encode every row as :meth:`RowEncoder.encode` does, or find the result in the cache folder.

    The key holds the content of the rows, the template, the definition of the tokenizer and the source of
    the modules that determine the ids: after a change in any of them the rows are encoded again. Where the
    folder can't be written, the encoded rows are in memory.
    """
    if not rows:
        return []
    key = {
        "what": "encoded rows",
        "rows": rows_fingerprint(rows),
        "template": encoder.prompt.model_dump(mode="json"),
        "markup": encoder.template.render(SAMPLE_TURNS),
        "tokenizer": encoder.vocabulary.fingerprint,
        "bos": encoder.vocabulary.bos,
        "special": encoder.vocabulary.special_tokens,
        "code": _code_fingerprint(),
    }
    with cache.making(key):
        stored = cache.load(key)
        if stored is None:
            cache.save_batches(key, _SCHEMA, _batches(encoder, rows, progress))
            stored = cache.load(key)
    return encoder.encode(rows, progress) if stored is None else EncodedRows(rows, stored)


def _batches(encoder: RowEncoder, rows: Sequence[Comparison], progress: bool) -> Iterator[pa.RecordBatch]:
    with progress_bar("tokenising", len(rows), "row") if progress else nullcontext() as bar:
        for chunk in chunks(rows):
            encoded = encoder.encode(chunk)
            columns = {name: [getattr(row, name) for row in encoded] for name in _SCHEMA.names}
            yield pa.record_batch(columns, _SCHEMA)
            if bar:
                bar.advance(len(chunk))


def _code_fingerprint() -> str:
    """Fingerprint of the source code that determines the ids of a row."""
    return cache.code_fingerprint(
        placeholders, rendering, truncation, tokenization, budget, answer_tokens, encoding,
        sys.modules[__name__],
    )  # fmt: skip
