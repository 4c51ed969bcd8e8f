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

# Libraries report to their makers that they are used, unless told not to before they are imported. trl does
# so in a thread that reads environment variables while accelerate sets some: that can crash the process.
for _name, _value in {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # trl
    "UNSLOTH_DISABLE_STATISTICS": "1",  # waits up to two minutes for the hub, on a GPU
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "WANDB_ERROR_REPORTING": "false",
}.items():
    os.environ.setdefault(_name, _value)

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
