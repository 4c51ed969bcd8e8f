"""``engine=llama_cpp``: a GGUF file computed by llama-cpp-python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.prompting.encoding import RowEncoder

_BATCH = 512
"""Number of tokens that llama.cpp computes at a time."""


class GgufFile:
    """A GGUF file whose tokens are those of the run's tokenizer, which is checked for every new token id.

    Args:
        file: the GGUF file.
        encoder: encodes the rows.

    Raises:
        UserError: llama-cpp-python is not installed, the file can't be read, or its tokens are others.
    """

    def __init__(self, file: Path, encoder: RowEncoder) -> None:
        self.file, self.encoder = file, encoder
        self.answers = [ids[0] for ids in encoder.answer_ids]
        try:
            import llama_cpp
        except ImportError:
            raise UserError(
                "engine=llama_cpp needs llama-cpp-python, which is not installed: "
                'pip install "lmsys_unsloth[llama]" (it compiles llama.cpp, a few minutes).'
            ) from None
        self._logits_of = llama_cpp.llama_get_logits_ith
        context = encoder.prompt.max_tokens + 1
        try:
            self._llama: Any = llama_cpp.Llama(
                str(file), n_ctx=context, n_batch=min(_BATCH, context), n_threads=os.cpu_count(),
                n_gpu_layers=-1, verbose=False,
            )  # fmt: skip
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(f"{file}: llama.cpp can't read it ({error}); export it again.") from None
        self._size = int(self._llama.n_vocab())
        self._checked: set[int] = set()
        self._check(self.answers)

    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Compute logits; see :class:`~lmsys_unsloth.predict.engines.engine.Engine`."""
        found = np.empty((len(rows), len(self.answers)), dtype=np.float32)
        for number, row in enumerate(rows):
            self._check(row)
            self._llama.reset()
            self._llama.eval(list(row))
            pointer = self._logits_of(self._llama.ctx, -1)
            found[number] = np.ctypeslib.as_array(pointer, shape=(self._size,))[self.answers]
        return torch.from_numpy(found)

    def _check(self, ids: Sequence[int]) -> None:
        """Check that ids stand for the same tokens in the file as in the run's tokenizer."""
        for token in set(ids) - self._checked:
            own = self.encoder.tokenizer.convert_ids_to_tokens(token)
            other = self._llama._model.token_get_text(token) if token < self._size else None
            if own != other:
                what = "is not in" if other is None else f"is {other!r} in"
                raise UserError(
                    f"{self.file}: token {token}, {own!r}, {what} this file; it belongs to another model "
                    "than the run.\n  Export the run itself: python -m lmsys_unsloth.export format=gguf"
                )
            self._checked.add(token)
