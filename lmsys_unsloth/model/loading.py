"""Loading, adapting and saving language models."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from lmsys_unsloth.config.checks import GGUF_REMEDY
from lmsys_unsloth.config.schema import ModelConfig, TrainConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.model import memory, smollm2
from lmsys_unsloth.model.decoder import Decoder, FastDecoder, ReferenceDecoder, causal_lm, compute_dtype
from lmsys_unsloth.model.families.known import family_of
from lmsys_unsloth.model.families.model_folder import model_settings, require_supported
from lmsys_unsloth.model.families.other import check_own_logits
from lmsys_unsloth.model.layers.kernels import unsloths_kernels
from lmsys_unsloth.model.unsloth_import import import_unsloth, output_to_log

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_TOKENIZER_FILES = ["tokenizer*", "special_tokens_map.json", "chat_template*", "config.json"]
_WEIGHT_FILES = [*_TOKENIZER_FILES, "*.safetensors", "*.safetensors.index.json", "generation_config.json"]


def local_folder(config: ModelConfig, *, weights: bool) -> Path:
    """Return the folder that holds the tokenizer, and ``weights`` if asked for; fetch them where needed.

    Raises:
        UserError: the hub can't be reached and nothing is cached, or the configured folder lacks files.
    """
    if config.path is not None:
        folder = Path(config.path)
    elif config.package is not None:
        folder = smollm2.prepare()
    else:
        folder = _download(config, _WEIGHT_FILES if weights else _TOKENIZER_FILES)
    if weights and not list(folder.glob("*.safetensors")):
        if any(folder.glob("*.gguf")):
            raise UserError(f"{folder}: {GGUF_REMEDY}")
        raise UserError(
            f"{folder}: holds no *.safetensors file; other weight formats can carry code and are not read.\n"
            "  Convert the model with save_pretrained (transformers writes safetensors)."
        )
    return folder


def require_available(config: ModelConfig) -> None:
    """Raise :class:`UserError` if the tokenizer can't be loaded; imports neither unsloth nor transformers."""
    if config.path is None and config.package is not None:
        smollm2.gguf_file()
    else:
        local_folder(config, weights=False)


def _download(config: ModelConfig, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repo = cast(str, config.repo)
    try:
        return Path(snapshot_download(repo, revision=config.revision, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        cause: Exception = error
        reason = "the hub does not know it, or it is gated and no token is set"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason, cause = "the hub can't be reached and nothing is cached", error
    raise UserError(
        f"model={config.name} needs {repo}: {reason}.\n"
        "  Either download it where there is a network (`hf download "
        f"{repo}`; for gated models first `hf auth login`) and share that machine's cache (HF_HOME),\n"
        "  or name a local copy in Hugging Face format: model.path=DIR."
    ) from cause


def load_tokenizer(config: ModelConfig, *, own_weights: bool = True) -> PreTrainedTokenizerBase:
    """Load the model's own tokenizer, unchanged.

    Args:
        config: the model.
        own_weights: whether the model's weights are loaded here too, not by another engine.

    Raises:
        UserError: as :func:`local_folder`, or the model's weights can't be used.
    """
    folder = local_folder(config, weights=False)  # before the slow import, as it may fail
    if find_spec("unsloth"):  # an environment of engine=vllm lacks it
        import_unsloth()
    if own_weights:
        require_supported(model_settings(folder), config.name)
    from transformers import AutoTokenizer

    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def load_model(config: ModelConfig, train: TrainConfig | None = None) -> nn.Module:
    """Load the base model through unsloth, to be trained as ``train`` says, or only scored if that is None.

    Raises:
        UserError: as :func:`local_folder`, or a model of an unknown family computes its logits otherwise.
    """
    folder = local_folder(config, weights=True)
    settings = model_settings(folder)
    unsloth = import_unsloth()
    log.info("loading %s (%s)", config.name, "4-bit" if config.load_in_4bit else config.dtype)
    options: dict[str, Any] = {}
    if settings.get("attn_logit_softcapping") and not torch.cuda.is_available():
        options["attn_implementation"] = "eager"  # SDPA can't cap attention logits
    with output_to_log():
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            str(folder),
            # Beyond the model's own positions unsloth would rescale its rotary embedding.
            max_seq_length=min(
                config.max_seq_length, settings.get("max_position_embeddings") or config.max_seq_length
            ),
            dtype=None if config.dtype == "auto" else getattr(torch, config.dtype),
            load_in_4bit=config.load_in_4bit,
            use_gradient_checkpointing=unsloth_checkpointing(train),
            trust_remote_code=False,
            offload_embedding=False,  # by default unsloth moves the embeddings to the CPU on small GPUs
            **options,
        )
    if config.load_in_4bit and make_resident(model, config.resident):
        log.info("4-bit weights dequantised once, to %s", compute_dtype(model))
    if family_of(settings) is None:
        check_own_logits(model, folder)
    return cast(nn.Module, model)


def make_resident(model: nn.Module, resident: Literal["auto", "4bit", "bf16", "fp8"]) -> int:
    """Replace 4-bit linear layers by plain ones with the same values, if memory allows it; return how many.

    QLoRA trains against exactly these values, but computes them anew at every pass: 2% of a step of Llama 3
    8B with micro-batches of 7,000 tokens (H200), the more the smaller they are.
    """
    import bitsandbytes as bnb

    kind: Any = bnb.nn.modules.Linear4bit
    quantised: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, kind)}
    weights = sum(module.in_features * module.out_features for module in quantised.values())
    dtype = compute_dtype(model)
    if not memory.should_dequantise(resident, weights, dtype.itemsize, memory.free_bytes()):
        return 0
    for name, module in quantised.items():
        values = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        plain = nn.Linear(1, 1, bias=False)
        plain.in_features, plain.out_features = module.in_features, module.out_features
        plain.weight = nn.Parameter(values.to(dtype), requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(name, plain)
    return len(quantised)


def unsloth_checkpointing(train: TrainConfig | None) -> str | bool:
    """unsloth's own checkpointing, where the reference decoder is wanted from the start."""
    return "unsloth" if train is not None and not train.fast and train.checkpoint == "all" else False


def is_known(model: nn.Module) -> bool:
    """Whether the fast decoder computes the model's family."""
    return family_of(cast(Any, causal_lm(model)).config.to_dict()) is not None


def make_decoder(model: nn.Module, *, fast: bool) -> Decoder:
    """Return the fast decoder, with unsloth's kernels where there is a GPU, or the reference decoder.

    Raises:
        ValueError: the fast decoder is asked for, but does not know the model's family.
    """
    if not fast:
        return ReferenceDecoder(model)
    if not torch.cuda.is_available():
        return FastDecoder(model)
    import_unsloth()
    return FastDecoder(model, unsloths_kernels())
