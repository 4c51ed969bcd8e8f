"""The ``engine`` section of a run's configuration: what computes the probabilities of scored rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from lmsys_unsloth.config.schema import Section


class EngineConfig(Section):
    """What computes the answers' probabilities when rows are scored; training always uses ``native``."""

    kind: Literal["native", "transformers", "classifier", "llama_cpp", "openai", "vllm"]
    """``native``: this project's own forward pass. ``transformers``: the model's own, the reference.
    ``classifier``, ``llama_cpp``: the exported model in ``path``. ``openai``: the server at ``url``.
    ``vllm``: vLLM in this process, with the exported model in ``path`` or the run's own adapters."""
    path: str | None
    """Folder of an exported model, or GGUF file."""
    url: str | None
    """Address of a server, up to and including ``/v1``; a key is read from ``OPENAI_API_KEY`` only."""
    model: str | None
    """Name of the model on the server; null: the first one that it lists."""
    prompt: Literal["ids", "text"]
    """What a server is sent: token ids, or text that it tokenises itself where it does not take ids."""
    top: int = Field(ge=3, le=1000)
    """Number of most probable tokens that a server is asked for; the answers must be among them."""
    concurrency: PositiveInt
    """Maximum number of requests at a time."""
    retries: NonNegativeInt
    """Number of times that a request is repeated after a failed connection or a status of 429 or 5xx."""
    timeout: PositiveFloat
    """Seconds until a request without an answer counts as failed."""
    memory: float = Field(gt=0, le=1)
    """Share of the GPU's memory that vLLM may take."""
    check: PositiveInt | None
    """Compare the engine with ``transformers`` on this many rows and stop; null: score."""
