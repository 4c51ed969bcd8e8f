"""Fine-tune a causal language model to predict which of two chatbot answers a person prefers."""

import os

# Micro-batches of different sizes fragment the memory of a GPU. PyTorch reads the variable when it is
# imported; unsloth sets it too, but later.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

__version__ = "0.1.0"
