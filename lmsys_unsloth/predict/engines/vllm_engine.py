"""``engine=vllm``: a run's adapters over its base model, or an export, computed by vLLM in this process."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import loading
from lmsys_unsloth.prompting.encoding import RowEncoder

log = logging.getLogger(__name__)

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for ``max_lora_rank``."""


class VllmEngine:
    """One token is requested for each row, with the log-probabilities of the answers' tokens.

    They are those of the model's full vocabulary (after Gemma 2's cap), so their softmax over the answers is
    that of the logits. Runs with the same base model share it.

    Args:
        config: of the scoring. ``engine.path`` names an export; without it, the adapters are applied to the
            base model of the run.
        encoder: encodes the rows.
        adapter: folder of the trained weights; None for an untrained model.

    Raises:
        UserError: vLLM is not installed, the run can't be computed by it, or it can't load the model.
    """

    def __init__(self, config: Config, encoder: RowEncoder, adapter: Path | None) -> None:
        self.answers = [ids[0] for ids in encoder.answer_ids]
        exported = config.engine.path
        rank = 0 if exported or adapter is None else _rank(config, adapter)
        folder = Path(exported) if exported else loading.local_folder(config.model, weights=True)
        four_bits = config.model.load_in_4bit and not exported
        if four_bits and not torch.cuda.is_available():
            log.warning(
                "vLLM has no 4-bit weights on a CPU: the adapters are applied to 16-bit ones, which they "
                "were not trained with, and probabilities differ (compare: engine.check=100). An export has "
                "the weights of the training: format=merged16, engine.path=EXPORT"
            )
            four_bits = False
        self._vllm = _import_vllm()
        self._llm: Any = _load(
            folder,
            dtype=config.model.dtype,
            length=encoder.prompt.max_tokens + 1,
            rank=rank,
            quantization="bitsandbytes" if four_bits else None,
            memory=config.engine.memory,
        )
        self._adapter = _request(adapter) if rank and adapter is not None else None
        self._sampling = self._vllm.SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=self.answers, detokenize=False
        )

    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Compute log-probabilities; see :class:`~lmsys_unsloth.predict.engines.engine.Engine`."""
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        outputs = self._llm.generate(prompts, self._sampling, use_tqdm=False, lora_request=self._adapter)
        return torch.tensor([self._of_answers(output) for output in outputs], dtype=torch.float32)

    def _of_answers(self, output: Any) -> list[float]:
        """Log-probabilities of the answers in vLLM's output for one row."""
        found = output.outputs[0].logprobs
        values = [
            found[0][token].logprob if found and token in found[0] else math.nan for token in self.answers
        ]
        if not all(map(math.isfinite, values)):
            raise UserError(
                f"engine=vllm: returned no log-probabilities of the answers' tokens {self.answers}.\n  "
                "Install the version in requirements/vllm.txt; earlier ones do not know logprob_token_ids."
            )
        return values


def _import_vllm() -> Any:
    # In one process, vLLM ends with this one.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        import vllm
    except ImportError as error:
        raise UserError(
            f"engine=vllm needs vLLM, which can't be imported ({error}).\n  It has its own environment: "
            "pip install -r requirements/vllm.txt (docs/engines.md)"
        ) from None
    return vllm


@functools.lru_cache(maxsize=1)
def _load(
    folder: Path, *, dtype: str, length: int, rank: int, quantization: str | None, memory: float
) -> Any:
    """Load a base model, which the adapters of several runs share."""
    vllm = _import_vllm()
    lora = {} if not rank else {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}
    try:
        return vllm.LLM(
            model=str(folder),
            trust_remote_code=False,
            load_format="bitsandbytes" if quantization else "safetensors",
            quantization=quantization,
            dtype=dtype,
            max_model_len=length,
            enable_prefix_caching=True,
            enforce_eager=True,  # compiled graphs take a minute and pay when many tokens are generated
            gpu_memory_utilization=memory,
            **lora,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"{folder}: vLLM can't load it: {' '.join(str(error).split())[:300]}\n  Lower engine.memory "
            "if other processes use the GPU, or use engine=native."
        ) from error


def _rank(config: Config, adapter: Path) -> int:
    """The smallest of vLLM's maximum ranks that holds a run's adapters.

    Raises:
        UserError: the run has trained weights that are no LoRA adapters.
    """
    problems = []
    if config.lora.kind == "full":
        problems.append("lora.kind=full: all weights were trained")
    if config.lora.use_dora:
        problems.append("lora.use_dora=true: vLLM has no DoRA")
    if config.head.kind == "lm_trained":
        problems.append("head.kind=lm_trained: the trained rows are not among the adapters")
    if problems:
        title = f"engine=vllm applies LoRA adapters only, but {adapter.parent} has"
        remedy = (
            "Use engine.path=EXPORT, after "
            f"python -m lmsys_unsloth.export run={adapter.parent} format=merged16 out=EXPORT"
        )
        raise UserError("\n  ".join([title, *problems, remedy]))
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return next(rank for rank in _RANKS if rank >= settings["r"])


_numbers: dict[Path, int] = {}
"""vLLM's numbers of adapters, which begin with 1."""


def _request(adapter: Path) -> Any:
    from vllm.lora.request import LoRARequest

    number = _numbers.setdefault(adapter.resolve(), len(_numbers) + 1)
    return LoRARequest(f"run{number}", number, str(adapter))
