"""The ``head`` section of a run's configuration: how hidden states become probabilities."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from lmsys_unsloth.config.schema import Section


class HeadConfig(Section):
    """How hidden states at the answer slot become probabilities of the three outcomes."""

    kind: Literal["lm", "lm_trained", "linear", "davidson"]
    """``lm``: the LM head's rows of the answer tokens, frozen. ``lm_trained``: a trained copy of these rows.
    ``linear``: a new linear classifier. ``davidson``: logits of ``lm`` averaged over both orders of the
    responses, so that the prediction does not depend on the order (ties after Davidson 1970). All but ``lm``
    require ``train.loss=answers``."""
    learning_rate: PositiveFloat
    """Peak learning rate of the weights of ``lm_trained`` and ``linear``."""
    offset: Literal["none", "form"]
    """``form``: log-probabilities of a logistic regression on the form of the responses (their lengths, lists
    and so on), fitted on the training rows, are added to the answers' logits in the second half of the
    training and after it, so that the model learns what the form does not say. In predictions the logits of
    a model that was trained on n rows are multiplied by n / (n + 600) before. Requires
    ``train.loss=answers``."""
