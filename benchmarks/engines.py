"""The engines that the GPU benchmark compares: transformers and PEFT, stock unsloth, and this project."""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from architectures import SHAPES, lengths, shape

ANSWERS = ((362,), (426,), (59,))
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def matmul_rate() -> float:
    """Measure bfloat16 floating-point operations per second of a large product of random matrices."""
    import torch

    size = 8192 if torch.cuda.is_available() else 512
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    seconds = timed(lambda: [a @ b for _ in range(10)])
    return 10 * 2 * size**3 / seconds


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds that ``run()`` takes, including the GPU's work."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def measured(step: Callable[[list[int]], Any], batches: list[list[int]]) -> dict[str, float]:
    """Measure tokens per second over all batches but the first, which warms up, and the peak memory."""
    import torch

    from lmsys_unsloth.model import memory

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step(batches[0])
    seconds = timed(lambda: [step(batch) for batch in batches[1:]])
    return {
        "tokens_per_second": sum(map(sum, batches[1:])) / seconds,
        "peak_gb": memory.peak_gb(),
    }


def micro_batches(each: list[int], tokens: int) -> list[list[int]]:
    """Group row lengths into micro-batches of similar lengths, in random order."""
    import numpy as np

    from lmsys_unsloth.model.batch import by_length

    batches = [[each[row] for row in rows] for rows in by_length(each, tokens)]
    order = np.random.default_rng(1).permutation(len(batches))
    return [batches[i] for i in order]


def random_batch(batch: list[int], vocabulary: int) -> Any:
    """Return rows of the given lengths with random ids, on the device."""
    import numpy as np
    import torch

    from lmsys_unsloth.model.batch import collate

    random = np.random.default_rng(sum(batch))
    rows = [random.integers(3, vocabulary, n) for n in batch]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return collate(rows, np.eye(3)[random.integers(0, 3, len(batch))]).to(device)


def load(folder: Path, name: str, rank: int, checkpoint: str = "none") -> tuple[Any, Any]:
    """Load a 4-bit model with adapters through this project's loader, and its tokenizer."""
    from factories import head_config, lora_config, model_config, train_config

    from lmsys_unsloth.model import loading, trained_weights
    from lmsys_unsloth.model.answer_head import attach_head

    architecture = SHAPES[name]["architecture"]
    config = model_config(
        folder, name=name, architecture=architecture, load_in_4bit=True, resident="4bit", dtype="auto",
        max_seq_length=4096,
    )  # fmt: skip
    train = train_config(fast=checkpoint == "none", checkpoint=checkpoint)
    lora = lora_config(r=rank, alpha=float(rank), dropout=0.0, target_modules=LINEAR)
    tokenizer = loading.load_tokenizer(config)
    model = trained_weights.make_trainable(loading.load_model(config, train), lora, train, seed=0)
    attach_head(model, head_config(), ANSWERS)
    return model, tokenizer


def this_project(name: str, folder: Path, rank: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure parity, then this project with its optimisations switched on one after the other."""
    from lmsys_unsloth.model import loading
    from lmsys_unsloth.model.decoder import FastDecoder, ReferenceDecoder

    model, _ = load(folder, name, rank)
    vocabulary, each = shape(name, options)["vocab_size"], lengths(options)
    batches = micro_batches(each, options.tokens)[: options.batches]
    # Rows of equal length, so that the last layer can be computed at all positions for comparison.
    equal = [[1024 // (40 if options.tiny else 1)] * (options.tokens // 1024 or 1)] * len(batches)
    reference, fast = ReferenceDecoder(model), loading.make_decoder(model, fast=True)
    assert isinstance(fast, FastDecoder)
    found: dict[str, Any] = {"parity": _parity(fast, random_batch(each[:4], vocabulary))}

    def training(decoder: Any, row_lengths: list[list[int]] = batches) -> dict[str, Any]:
        model.train()
        return _tried(lambda: measured(_training_step(decoder, vocabulary), row_lengths))

    def scoring(decoder: Any) -> dict[str, Any]:
        model.eval()
        return _tried(lambda: measured(_scoring_step(decoder, vocabulary), batches))

    trained = found["training"] = {
        "head at the slot only, padded": training(reference),
        "+ packed rows, last layer at the slot": training(fast),
        "(rows of 1,024: packed, whole last layer)": training(_whole_last_layer(fast), equal),
        "(rows of 1,024: packed, last layer at the slot)": training(fast, equal),
    }
    scored = found["scoring"] = {
        "head at the slot only, padded": scoring(reference),
        "packed, 4-bit": scoring(fast),
    }
    loading.make_resident(model, "bf16")
    trained["+ weights dequantised once"] = training(fast)
    fast.checkpointed = len(fast.layers)
    trained["  the same, all layers checkpointed"] = training(fast)
    fast.checkpointed = 0
    scored["packed, dequantised once"] = scoring(fast)
    _freeze_lower_half(model, len(fast.layers))
    trained["+ lower half frozen (lora.first_layer)"] = training(loading.make_decoder(model, fast=True))
    return found


def _training_step(decoder: Any, vocabulary: int) -> Callable[[list[int]], None]:
    from factories import train_config

    from lmsys_unsloth.train.losses import answer_loss

    config = train_config(loss="answers")

    def step(batch: list[int]) -> None:
        decoder.model.zero_grad(set_to_none=True)
        answer_loss(decoder, random_batch(batch, vocabulary), config).backward()

    return step


def _scoring_step(decoder: Any, vocabulary: int) -> Callable[[list[int]], None]:
    import torch

    from lmsys_unsloth.model.answer_head import answer_head

    def step(batch: list[int]) -> None:
        with torch.no_grad():
            answer_head(decoder.model).probabilities(decoder, random_batch(batch, vocabulary))

    return step


def _whole_last_layer(fast: Any) -> Any:
    """Return the fast decoder with its last layer at every position, for rows of equal length."""
    from lmsys_unsloth.model.decoder import FastDecoder

    class WholeLastLayer(FastDecoder):
        def __call__(self, input_ids: Any, lengths: Any, last: int = 1) -> Any:
            return super().__call__(input_ids, lengths, last=lengths[0])[:, -last:]

    return WholeLastLayer(fast.model, fast.kernels)


def _freeze_lower_half(model: Any, layers: int) -> None:
    for key, parameter in model.named_parameters():
        if any(f".layers.{layer}." in key for layer in range(layers // 2)):
            parameter.requires_grad_(False)


def _parity(fast: Any, batch: Any) -> dict[str, float]:
    """Measure the distance between both decoders, with adapters that change the results."""
    import torch

    from lmsys_unsloth.model.decoder import ReferenceDecoder
    from lmsys_unsloth.model.parity import parity_distances

    for name, parameter in fast.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    states, gradients = parity_distances(fast, ReferenceDecoder(fast.model), batch, gradients=True)
    return {"hidden_states": states, "gradients": gradients}


def stock(name: str, folder: Path, rank: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure unsloth with an unmodified SFTTrainer, with and without unsloth's checkpointing."""
    found: dict[str, Any] = {"training": {}}
    for rows, checkpoint, title in (
        (8, "all", "8 rows a micro-batch, checkpointed"),
        (4, "none", "4 rows a micro-batch, all activations kept"),
    ):
        run = functools.partial(_stock_training, name, folder, rank, rows, checkpoint, options)
        found["training"][title] = _tried(run)
    model, _ = load(folder, name, rank)
    found["scoring"] = {
        "logits at every position": _tried(lambda: _whole_logits(model.eval(), name, options))
    }
    return found


def _whole_logits(model: Any, name: str, options: argparse.Namespace) -> dict[str, float]:
    """Score as the libraries' own evaluation does: the LM head at every position of padded rows."""
    import torch

    def score(batch: list[int]) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            model(input_ids=padded(batch, shape(name, options)["vocab_size"])).logits[:, -1].float()

    # Logits of a whole batch are large, so batches are smaller than this project's.
    return measured(score, micro_batches(lengths(options), options.tokens // 2)[: 2 * options.batches])


def padded(batch: list[int], vocabulary: int) -> Any:
    """Return random rows of the given lengths ``[rows, longest]``, padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = random_batch(batch, vocabulary)
    return pad_sequence(list(torch.split(rows.input_ids, list(rows.lengths))), batch_first=True)


def _stock_training(
    name: str, folder: Path, rank: int, rows: int, checkpoint: str, options: argparse.Namespace
) -> dict[str, float]:
    import numpy as np
    import torch

    model, tokenizer = load(folder, name, rank, checkpoint)
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from lmsys_unsloth.model import memory

    steps = options.batches
    each = lengths(options)[: rows * steps]
    random = np.random.default_rng(0)
    ids = [random.integers(3, shape(name, options)["vocab_size"], n).tolist() for n in each]

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:  # the first step warms up
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.started = time.perf_counter()

    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=output, per_device_train_batch_size=rows, max_steps=steps, report_to="none",
                gradient_accumulation_steps=1,  # on CUDA unsloth makes it 2
                save_strategy="no", disable_tqdm=True, completion_only_loss=True, max_length=None,
                optim="adamw_8bit" if torch.cuda.is_available() else "adamw_torch",
                use_cpu=not torch.cuda.is_available(), train_sampling_strategy="sequential",
                gradient_checkpointing=checkpoint == "all",
            ),
            train_dataset=Dataset.from_dict(
                {"input_ids": ids, "completion_mask": [[0] * (len(row) - 1) + [1] for row in ids]}
            ),
            processing_class=tokenizer,
            callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - clock.started
    return {"tokens_per_second": sum(each[rows:]) / seconds, "peak_gb": memory.peak_gb()}


def plain(name: str, folder: Path, rank: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure transformers and PEFT alone: bfloat16 weights, padded rows, logits at every position."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "eager" if name == "gemma2" else "sdpa"
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation=kind)
    base.gradient_checkpointing_enable({"use_reentrant": False})
    model: Any = get_peft_model(base.to(device), LoraConfig(r=rank, lora_alpha=rank, target_modules=LINEAR))
    vocabulary = shape(name, options)["vocab_size"]

    def step(batch: list[int]) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            ids = padded(batch, vocabulary)
            labels = torch.full_like(ids, -100)
            labels[:, -1] = ANSWERS[0][0]
            model(input_ids=ids, labels=labels).loss.backward()

    # Each logit takes 16 bytes in training, so micro-batches are smaller than this project's.
    batches = micro_batches(lengths(options), options.tokens // 4)[: 4 * options.batches]
    found: dict[str, Any] = {"training": {"checkpointed": _tried(lambda: measured(step, batches))}}
    scored = _tried(lambda: _whole_logits(model.eval(), name, options))
    return {**found, "scoring": {"logits at every position": scored}}


def _tried(run: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """Return the numbers, or the error: a failing variant must not lose the others."""
    try:
        return run()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}


ENGINES = {"plain": plain, "stock": stock, "lmsys_unsloth": this_project}
