"""Loading, adapting and saving language models."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from lmsys_unsloth.config.schema import LoraConfig, ModelConfig, TrainConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import replacing_folder, write_json
from lmsys_unsloth.model import memory, smollm2
from lmsys_unsloth.model.decoder import Decoder, FastDecoder, ReferenceDecoder, compute_dtype
from lmsys_unsloth.model.layers import Kernels
from lmsys_unsloth.model.unsloth_import import import_unsloth, output_to_log

if TYPE_CHECKING:
    from peft import PeftModel
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


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the model's own tokenizer, unchanged."""
    folder = local_folder(config, weights=False)  # before the slow import, as it may fail
    import_unsloth()
    from transformers import AutoTokenizer

    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def load_model(config: ModelConfig, train: TrainConfig | None = None) -> nn.Module:
    """Load the base model through unsloth, to be trained as ``train`` says, or only scored if that is None.

    Raises:
        UserError: as :func:`local_folder`.
    """
    folder = local_folder(config, weights=True)
    unsloth = import_unsloth()
    log.info("loading %s (%s)", config.name, "4-bit" if config.load_in_4bit else config.dtype)
    options: dict[str, Any] = {}
    if config.architecture == "gemma2" and not torch.cuda.is_available():
        options["attn_implementation"] = "eager"  # SDPA can't cap attention logits
    with output_to_log():
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            str(folder),
            max_seq_length=config.max_seq_length,
            dtype=None if config.dtype == "auto" else getattr(torch, config.dtype),
            load_in_4bit=config.load_in_4bit,
            use_gradient_checkpointing=_unsloth_checkpointing(train),
            trust_remote_code=False,
            **options,
        )
    if config.load_in_4bit and make_resident(model, config.resident):
        log.info("4-bit weights dequantised once, to %s", compute_dtype(model))
    return cast(nn.Module, model)


def make_resident(model: nn.Module, resident: Literal["auto", "4bit", "bf16"]) -> int:
    """Replace 4-bit linear layers by plain ones with the same values, if memory allows it; return how many.

    QLoRA trains against exactly these values, but computes them anew at every pass, which takes a quarter of
    a step of Llama 3 8B at 1,000 tokens a micro-batch.
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


def _unsloth_checkpointing(train: TrainConfig | None) -> str | bool:
    """unsloth checkpoints layers for the reference decoder only; the fast one does so by itself."""
    return "unsloth" if train is not None and not train.fast and train.checkpoint == "all" else False


def make_decoder(model: nn.Module, *, fast: bool) -> Decoder:
    """Return the fast decoder, with unsloth's kernels where there is a GPU, or the reference decoder."""
    if not fast:
        return ReferenceDecoder(model)
    if not torch.cuda.is_available():
        return FastDecoder(model)
    import_unsloth()
    from unsloth.kernels import fast_rms_layernorm

    return FastDecoder(model, Kernels(fast_rms_layernorm))


def add_adapters(model: nn.Module, config: LoraConfig, train: TrainConfig, *, seed: int) -> PeftModel:
    """Add new LoRA adapters to the base model; only they are trained.

    Raises:
        UserError: ``lora.first_layer`` is above the model's last layer.
    """
    unsloth = import_unsloth()
    depth = cast(Any, model).config.num_hidden_layers
    if config.first_layer >= depth:
        raise UserError(
            f"lora.first_layer = {config.first_layer}: the model has {depth} layers, "
            "so nothing would be trained.\n"
            f"  Choose 0 to {depth - 1}."
        )
    with output_to_log():
        adapted = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.target_modules),
            layers_to_transform=list(range(config.first_layer, depth)) if config.first_layer else None,
            use_rslora=config.use_rslora,
            bias="none",
            use_gradient_checkpointing=_unsloth_checkpointing(train),
            random_state=seed,
        )
    return cast("PeftModel", adapted)


def load_adapters(model: nn.Module, folder: Path) -> PeftModel:
    """Load trained adapters onto the base model that they were trained on.

    Raises:
        UserError: the folder holds no adapters in safetensors format.
    """
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{folder}: holds no adapter_model.safetensors, so the run has not finished training.\n"
            f"  Go on with it: python train.py resume={folder.parent}"
        )
    adapted = PeftModel.from_pretrained(model, folder, is_trainable=False)
    return cast("PeftModel", adapted.eval())


def remove_adapters(model: PeftModel) -> nn.Module:
    """Discard the adapters that :func:`load_adapters` loaded and return the base model, ready for others."""
    return cast(nn.Module, model.unload())


def save_adapters(model: PeftModel, folder: Path, config: ModelConfig) -> None:
    """Write the adapters in PEFT's format, atomically, naming the base model and no local path."""
    model.peft_config["default"].base_model_name_or_path = config.repo or config.name
    with replacing_folder(folder) as work:
        # Embeddings are never trained; "auto" would ask the hub whether they changed.
        model.save_pretrained(work, safe_serialization=True, save_embedding_layers=False)


def average_adapters(folders: Sequence[Path], target: Path) -> None:
    """Write adapters whose update of every weight is the mean of the updates ``B @ A`` of several adapters.

    A mean of products is not the product of means, so all A and all B are concatenated: exact, with as many
    times the rank as there are adapters (``combination_type="cat"`` in PEFT, which scales rank-stabilised
    adapters wrongly; ``linear`` averages A and B separately, ``svd`` reduces the rank).

    Raises:
        UserError: the adapters differ in more than their values, or hold something other than plain LoRA.
    """
    from safetensors.torch import load_file, save_file

    configs = [json.loads((folder / "adapter_config.json").read_text("utf-8")) for folder in folders]
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    remedy = "  Average the probabilities instead: eval.average=probabilities."
    for folder, config, own in zip(folders, configs, tensors, strict=True):
        for key in ("r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform"):
            first, other = (sorted(v) if isinstance(v, list) else v for v in (configs[0][key], config[key]))
            if first != other:
                raise UserError(
                    f"{folder} and {folders[0]}: {key} = {other} and {first}; only adapters of one shape can "
                    f"be averaged.\n{remedy}"
                )
        others = [name for name in own if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
        if others or own.keys() != tensors[0].keys() or config["rank_pattern"] or config["alpha_pattern"]:
            raise UserError(
                f"{folder}: holds {', '.join(others[:3]) or 'other layers or ranks than the first one'}; "
                f"only plain LoRA adapters of the same layers can be averaged.\n{remedy}"
            )
    count = len(folders)
    averaged = {
        name: torch.cat([own[name] for own in tensors], dim=0)
        if name.endswith(".lora_A.weight")
        else torch.cat([own[name] / count for own in tensors], dim=1)
        for name in tensors[0]
    }
    growth = math.sqrt(count) if configs[0]["use_rslora"] else count  # keeps alpha / r or alpha / sqrt(r)
    config = configs[0] | {"r": configs[0]["r"] * count, "lora_alpha": configs[0]["lora_alpha"] * growth}
    with replacing_folder(target) as work:
        save_file(averaged, work / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(work / "adapter_config.json", config)
