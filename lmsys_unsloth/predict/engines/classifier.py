"""``engine=classifier``: a sequence classification checkpoint, computed as pooling servers compute it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model.unsloth_import import import_unsloth
from lmsys_unsloth.prompting.encoding import RowEncoder


class Classifier:
    """A checkpoint that ``format=classifier`` wrote, loaded with transformers' own class.

    Args:
        folder: the checkpoint.
        encoder: encodes the rows.
        cap: whether to apply ``final_logit_softcapping`` of the configuration, as the LM head of Gemma 2
            does. transformers' class and pooling servers do not.

    Raises:
        UserError: the checkpoint can't be read, or has another number of labels than there are answers.
    """

    def __init__(self, folder: Path, encoder: RowEncoder, *, cap: bool = True) -> None:
        import_unsloth()
        from transformers import AutoModelForSequenceClassification

        options: dict[str, Any] = {"dtype": "auto", "trust_remote_code": False, "use_safetensors": True}
        try:
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: not a classification checkpoint ({error}).") from None
        config = self._model.config
        if config.num_labels != len(encoder.answer_ids):
            raise UserError(
                f"{folder}: has {config.num_labels} labels, but the prompt has {len(encoder.answer_ids)} "
                "answers.\n  Use the prompt of the run that was exported."
            )
        if torch.cuda.is_available():
            self._model.cuda()
        self._cap: float | None = getattr(config, "lmsys_unsloth_cap", None) if cap else None

    @torch.no_grad()
    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Compute logits; see :class:`~lmsys_unsloth.predict.engines.engine.Engine`."""
        tensors = [torch.tensor(row) for row in rows]
        padding = self._model.config.pad_token_id or 0
        ids = pad_sequence(tensors, batch_first=True, padding_value=padding).to(self._model.device)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        found: Tensor = self._model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits.float()
        found = found if self._cap is None else self._cap * torch.tanh(found / self._cap)
        return found.cpu()
