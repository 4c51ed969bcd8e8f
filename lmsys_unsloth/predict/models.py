"""The model that scores rows, as a configuration names it: base, trained weights and head, or an engine."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.data.form.offset import FormOffset
from lmsys_unsloth.model import loading, trained_weights
from lmsys_unsloth.model.answer_head import attach_head
from lmsys_unsloth.predict.engines.engine import OTHER_ENGINES, EngineModel, open_engine
from lmsys_unsloth.prompting.encoding import RowEncoder


def load_scored_model(
    config: Config,
    encoder: RowEncoder,
    adapter: Path | None,
    *,
    base: nn.Module | None = None,
    head: Path | None = None,
) -> nn.Module:
    """Load what rows are scored with, as ``engine`` says, with its answer head.

    Args:
        config: of the scoring.
        encoder: encodes the rows.
        adapter: folder of the trained weights; None for an untrained model. ``engine=classifier``,
            ``llama_cpp`` and ``openai`` compute an exported model and do not read it.
        base: the base model, if it is in memory already.
        head: folder of the trained head and of its offset, if it is not ``adapter``.

    Raises:
        UserError: the weights, or the engine, can't be used.
    """
    if config.engine.kind in OTHER_ENGINES:
        trained = head or adapter
        offset = None if trained is None or config.head.offset == "none" else FormOffset.load(trained)
        return EngineModel(open_engine(config, encoder, adapter), encoder.answer_ids, offset)
    model = loading.load_model(config.model) if base is None else base
    if adapter is not None:
        model = trained_weights.load_adapters(model, adapter)
    attach_head(model, config.head, encoder.answer_ids, folder=head or adapter)
    return model
