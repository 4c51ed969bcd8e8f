"""Llama 3 8B and Gemma 2 9B on one GPU: parity first, then speed and memory of every way to train and score.

    python benchmarks/gpu.py                           # everything: about 9 minutes on an H100
    python benchmarks/gpu.py --models llama3 --ranks 16
    python benchmarks/gpu.py --tiny                    # the same road with tiny models, on a CPU too

Weights are random in the real architecture, written to a temporary folder and loaded (and quantised) as a
user's would be. Rows have the lengths of LMSYS's (log-normal, mean 1,100, at most 3,072 tokens) and random
ids; what is computed does not depend on them. Every engine runs in a process of its own, so that memory is
its own and libraries that patch others can't meet. What fails is reported as failed, with its error.

Writes ``gpu-DATE.json`` (all numbers) and ``gpu-DATE.md`` (the table) to ``--out``.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from architectures import SHAPES, flops_per_token, lengths, shape, write_random_model
from heading import heading

ANSWERS = ((362,), (426,), (59,))
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ENGINES = ("plain", "stock", "ours")
SECONDS_AN_ENGINE = 240


def matmul_rate() -> float:
    """bf16 floating-point operations a second of a large product on random data."""
    import torch

    size = 8192 if torch.cuda.is_available() else 512
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    seconds = timed(lambda: [a @ b for _ in range(10)])
    return 10 * 2 * size**3 / seconds


def timed(run: Callable[[], Any]) -> float:
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def measured(step: Callable[[list[int]], Any], batches: list[list[int]]) -> dict[str, float]:
    """Tokens a second over all batches but the first, which warms up, and the peak memory of all."""
    import torch

    from lmsys_unsloth import memory

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step(batches[0])
    seconds = timed(lambda: [step(batch) for batch in batches[1:]])
    return {
        "tokens_per_second": sum(map(sum, batches[1:])) / seconds,
        "peak_gb": memory.peak_gb(),
    }


def cut(each: list[int], tokens: int) -> list[list[int]]:
    """Micro-batches of rows of like length, as training and scoring make them, in random order."""
    import numpy as np

    from lmsys_unsloth.batches import by_length

    batches = [[each[row] for row in rows] for rows in by_length(each, tokens)]
    order = np.random.default_rng(1).permutation(len(batches))
    return [batches[i] for i in order]


def random_batch(batch: list[int], vocabulary: int) -> Any:
    """Rows of the given lengths with random ids, on the device."""
    import numpy as np
    import torch

    from lmsys_unsloth.batches import collate

    random = np.random.default_rng(sum(batch))
    rows = [random.integers(3, vocabulary, n) for n in batch]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return collate(rows, np.eye(3)[random.integers(0, 3, len(batch))]).to(device)


def load(folder: Path, name: str, rank: int, checkpoint: str = "none") -> tuple[Any, Any]:
    """Model through this project's loader (unsloth, 4-bit) with adapters, and its tokenizer."""
    from lmsys_unsloth import models
    from lmsys_unsloth.settings import LoraConfig, ModelConfig, TrainConfig

    config = ModelConfig(
        name=name, architecture=SHAPES[name]["architecture"], repo=None, package=None, path=str(folder),
        revision=None, load_in_4bit=True, resident="4bit", dtype="auto", max_seq_length=4096,
        learning_rate=1e-4,
    )  # fmt: skip
    train = TrainConfig(
        epochs=1, max_steps=None, rows_per_step=16, tokens_per_step=None, tokens_per_micro_batch=8192,
        learning_rate=1e-4, lr_scheduler="constant", warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=None,
        optimizer="adamw_8bit", loss="answers", fast=checkpoint == "none", checkpoint=checkpoint, log_every=1,
        save_every=1000,
    )  # fmt: skip
    lora = LoraConfig(
        r=rank, alpha=float(rank), dropout=0.0, target_modules=LINEAR, use_rslora=False, first_layer=0
    )
    tokenizer = models.load_tokenizer(config)
    return models.add_adapters(models.load_model(config, train), lora, train, seed=0), tokenizer


def ours(name: str, folder: Path, rank: int, options: argparse.Namespace) -> dict[str, Any]:
    """Parity, then every optimisation of this project switched on in turn."""
    import torch

    from lmsys_unsloth import models
    from lmsys_unsloth.decoder import FastDecoder, OrdinaryDecoder
    from lmsys_unsloth.forward import answer_loss, answer_probabilities

    class WholeLastLayer(FastDecoder):
        """Packed, but with the last layer at every position: what leaving it out is measured against."""

        def __call__(self, input_ids: torch.Tensor, lengths: Any, last: int = 1) -> torch.Tensor:
            states = super().__call__(input_ids, lengths, last=min(lengths))
            return states[:, -last:]

    model, _ = load(folder, name, rank)
    vocabulary, each = shape(name, options)["vocab_size"], lengths(options)
    fast = models.decoder(model, fast=True)
    found: dict[str, Any] = {"parity": _parity(model, fast, random_batch(each[:4], vocabulary))}

    def training(decoder: Any) -> Callable[[list[int]], Any]:
        def step(batch: list[int]) -> None:
            model.zero_grad(set_to_none=True)
            answer_loss(decoder, random_batch(batch, vocabulary), ANSWERS, "answers").backward()

        return step

    def scoring(decoder: Any) -> Callable[[list[int]], Any]:
        def step(batch: list[int]) -> None:
            with torch.no_grad():
                answer_probabilities(decoder, random_batch(batch, vocabulary), ANSWERS)

        return step

    # Equal lengths are needed for the whole last layer of the packed path: its cost alone is compared.
    tokens = options.tokens
    batches = cut(each, tokens)[: options.batches]
    equal = [[1024 // (40 if options.tiny else 1)] * (tokens // 1024 or 1)] * len(batches)
    steps: dict[str, Callable[[], dict[str, float]]] = {
        "head at the slot only, padded": lambda: measured(training(OrdinaryDecoder(model)), batches),
        "+ packed rows, last layer at the slot": lambda: measured(training(fast), batches),
        "(rows of 1,024: packed, whole last layer)": lambda: measured(
            training(WholeLastLayer(model, fast.kernels)),
            equal,  # type: ignore[attr-defined]
        ),
        "(rows of 1,024: packed, last layer at the slot)": lambda: measured(training(fast), equal),
    }
    model.train()
    found["training"] = {title: _tried(run) for title, run in steps.items()}
    model.eval()
    found["scoring"] = {
        "head at the slot only, padded": _tried(lambda: measured(scoring(OrdinaryDecoder(model)), batches)),
        "packed, 4-bit": _tried(lambda: measured(scoring(fast), batches)),
    }
    models.make_resident(model, "bf16")
    model.train()
    found["training"]["+ weights dequantised once"] = _tried(lambda: measured(training(fast), batches))
    fast.checkpointed = len(fast.layers)  # type: ignore[attr-defined]
    found["training"]["  the same, all layers checkpointed"] = _tried(
        lambda: measured(training(fast), batches)
    )
    fast.checkpointed, half = 0, len(fast.layers) // 2  # type: ignore[attr-defined]
    for key, parameter in model.named_parameters():
        if any(f".layers.{layer}." in key for layer in range(half)):
            parameter.requires_grad_(False)
    frozen = models.decoder(model, fast=True)
    found["training"]["+ lower half frozen (lora.first_layer)"] = _tried(
        lambda: measured(training(frozen), batches)
    )
    model.eval()
    found["scoring"]["packed, dequantised once"] = _tried(lambda: measured(scoring(fast), batches))
    return found


def _parity(model: Any, fast: Any, batch: Any) -> dict[str, float]:
    """Relative distance of hidden states and of LoRA gradients between the fast and the ordinary path."""
    import torch

    from lmsys_unsloth.decoder import OrdinaryDecoder
    from lmsys_unsloth.forward import answer_loss

    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    states, gradients = [], []
    for decoder in (fast, OrdinaryDecoder(model)):
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            states.append(decoder(batch.input_ids, batch.lengths).float())
        answer_loss(decoder, batch, ANSWERS, "answers").backward()
        found = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    return {
        "hidden_states": float((states[0] - states[1]).norm() / states[1].norm()),
        "gradients": float((gradients[0] - gradients[1]).norm() / gradients[1].norm()),
    }


def stock(name: str, folder: Path, rank: int, options: argparse.Namespace) -> dict[str, Any]:
    """unsloth with trl's SFTTrainer as it comes, with and without unsloth's checkpointing."""
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
    """Scoring as the libraries' own evaluation does it: the LM head at every position of padded rows."""
    import torch

    def score(batch: list[int]) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            model(input_ids=padded(batch, shape(name, options)["vocab_size"])).logits[:, -1].float()

    # Logits of a whole batch are large: smaller batches than ours.
    return measured(score, cut(lengths(options), options.tokens // 2)[: 2 * options.batches])


def padded(batch: list[int], vocabulary: int) -> Any:
    """Random rows of the given lengths ``[rows, longest]``, padded on the right."""
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

    from lmsys_unsloth import memory

    steps = options.batches
    each = [n for n in lengths(options)][: rows * steps]
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
    """transformers and PEFT alone: bf16 weights, padded rows, logits at every position."""
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

    # Logits of a whole batch take 16 bytes each in training: smaller micro-batches than ours.
    batches = cut(lengths(options), options.tokens // 4)[: 4 * options.batches]
    found: dict[str, Any] = {"training": {"checkpointed": _tried(lambda: measured(step, batches))}}
    scored = _tried(lambda: _whole_logits(model.eval(), name, options))
    return {**found, "scoring": {"logits at every position": scored}}


def _tried(run: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """The numbers, or why there are none: one failing variant does not lose the others."""
    try:
        return run()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}


def in_a_process(
    engine: str, name: str, folder: Path, rank: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One engine's numbers, or what it said when it failed."""
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        command = [
            sys.executable, __file__, "--engine", engine, "--models", name, "--ranks", str(rank),
            "--folder", str(folder), "--answer", answer.name, "--rows", str(options.rows),
            "--tokens", str(options.tokens), "--batches", str(options.batches),
            *(["--tiny"] if options.tiny else []),
        ]  # fmt: skip
        started = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_AN_ENGINE)
        except subprocess.TimeoutExpired:
            return {"failed": f"not finished after {SECONDS_AN_ENGINE} s"}
        text = Path(answer.name).read_text()
        if done.returncode or not text:
            return {"failed": done.stderr.strip()[-2000:]}
        found: dict[str, Any] = {**json.loads(text), "seconds": time.perf_counter() - started}
        return found


def table(result: dict[str, Any]) -> str:
    """Everything as one Markdown table."""
    lines = [
        heading("Llama 3 8B and Gemma 2 9B on one GPU", result["env"]["command"]),
        f"bf16 matrix products here: {result['matmul_tflops']:.0f} TFLOP/s. Bound: tokens a second if all "
        f"needed operations ran at that rate. Mean row {result['mean_length']:.0f} tokens; micro-batches of "
        f"up to {result['tokens']:,} tokens.\n",
        "| model | r | job | engine | variant | tokens/s | share of bound | against best stock | peak GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        start = f"| {case['model']} | {case['rank']} |"
        for job in ("training", "scoring"):
            best = _best(case["engines"].get("stock", {}).get(job, {}))
            for engine, found in case["engines"].items():
                if "failed" in found:
                    lines.append(f"{start} {job} | {engine} | failed: see the JSON | | | | |")
                for title, numbers in found.get(job, {}).items():
                    cells = _cells(numbers, case["bounds"][job], best)
                    lines.append(f"{start} {job} | {engine} | {title} | {cells} |")
        parity = case["engines"].get("ours", {}).get("parity")
        if parity:
            apart = f"hidden states {parity['hidden_states']:.1e}, gradients {parity['gradients']:.1e}"
            lines.append(f"{start} parity | ours | {apart} from the ordinary path | | | | |")
    return "\n".join(lines) + "\n"


def _cells(numbers: dict[str, Any], bound: float, best: float | None) -> str:
    if "failed" in numbers:
        return f"{numbers['failed'].replace('|', '/')} | | |"
    speed = numbers["tokens_per_second"]
    against = f"{speed / best:.2f}×" if best else ""
    return f"{speed:,.0f} | {speed / bound:.0%} | {against} | {numbers['peak_gb']:.1f}"


def _best(variants: dict[str, Any]) -> float | None:
    speeds = [numbers["tokens_per_second"] for numbers in variants.values() if "failed" not in numbers]
    return max(speeds, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--ranks", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8192, help="in a micro-batch")
    parser.add_argument("--batches", type=int, default=6, help="measured, the first of which warms up")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models: checks the script, measures nothing"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.tokens = min(options.tokens, 512)
    if options.engine:
        run = {"plain": plain, "stock": stock, "ours": ours}[options.engine]
        found = run(options.models[0], options.folder, options.ranks[0], options)
        options.answer.write_text(json.dumps(found))
        return
    result = measure_all(options)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"gpu-{result['date']}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1))
    stem.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result), stem.with_suffix(".json"))


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Every model, rank and engine; r=64 leaves out plain transformers, which r does not change."""
    import torch

    from lmsys_unsloth.runs import environment

    rate, each = matmul_rate(), lengths(options)
    cases = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, name)
            write_random_model(name, folder, options)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            for rank in options.ranks:
                engines = [e for e in options.engines if e != "plain" or rank == options.ranks[0]]
                case: dict[str, Any] = {"model": name, "rank": rank, "engines": {}}
                case["bounds"] = {
                    job: rate / flops_per_token(name, options, rank, training=job == "training")
                    for job in ("training", "scoring")
                }
                for engine in engines:
                    case["engines"][engine] = in_a_process(engine, name, folder, rank, options)
                    print(
                        f"{name} r={rank} {engine}: {json.dumps(case['engines'][engine])[:600]}", flush=True
                    )
                cases.append(case)
    return {
        "date": str(datetime.date.today()),
        "env": environment(" ".join(["python benchmarks/gpu.py", *sys.argv[1:]])),
        "matmul_tflops": rate / 1e12,
        "mean_length": sum(each) / len(each),
        "tokens": options.tokens,
        "cases": cases,
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
