"""Fine-tune a causal language model to predict which of two chatbot answers a person prefers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmsys_unsloth.predict.predictor import Predictor as Predictor
    from lmsys_unsloth.predict.reward import PreferenceReward as PreferenceReward

__all__ = ["Predictor", "PreferenceReward"]

# Micro-batches of different sizes fragment the memory of a GPU. PyTorch reads the variable when it is
# imported; unsloth sets it too, but later.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a class when it is first used: it needs torch, the package alone needs nothing."""
    if name == "Predictor":
        from lmsys_unsloth.predict.predictor import Predictor

        return Predictor
    if name == "PreferenceReward":
        from lmsys_unsloth.predict.reward import PreferenceReward

        return PreferenceReward
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
