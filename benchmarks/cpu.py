"""This project against trl's SFTTrainer on unsloth, on a CPU: rows per second and peak memory.

    python benchmarks/cpu.py --data train.csv        # real rows; without --data, simulated ones
    python benchmarks/cpu.py --data train.csv --rounds 5 --train-rows 64 --eval-rows 128

Both fine-tune SmolLM2 in 4 bits (LoRA r=16 on all linear layers, 8 rows per optimiser step, the same rows,
prompt and learning rate) and score rows. "Stock" is what a user of trl writes: prompt and completion as token
ids, padded batches in shuffled order, loss on the completion only; it scores with the model's own forward.
trl checkpoints every layer by default, so training is also measured without. Each measurement runs in a
separate process, the variants in turn; medians are reported in ``results/cpu-DATE.md``.

The last table, by ``cpu_share.py``, gives the share of the machine's matrix-product rate that is achieved.
With the environment variable ``ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16`` a machine with AMX is measured as if it
had none.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "benchmarks", "tests")]

from heading import heading

ROWS_PER_STEP = 8
VARIANTS = {
    "train": {
        "stock": "stock, default (all layers checkpointed)",
        "stock-kept": "stock, nothing checkpointed",
        "default": "lmsys_unsloth",
        "reference": "lmsys_unsloth, `train.fast=false`",
        "4bit": "lmsys_unsloth, `model.resident=4bit`",
        "checkpointed": "lmsys_unsloth, `train.checkpoint=all`",
        "frozen": "lmsys_unsloth, `lora.first_layer=15`",
    },
    "eval": {
        "stock": "stock",
        "default": "lmsys_unsloth",
        "reference": "lmsys_unsloth, `train.fast=false`",
        "4bit": "lmsys_unsloth, `model.resident=4bit`",
    },
}
OVERRIDES = {
    "reference": ["train.fast=false"],
    "4bit": ["model.resident=4bit"],
    "checkpointed": ["train.checkpoint=all"],
    "frozen": ["lora.first_layer=15"],
}
BASELINE = {"train": "stock-kept", "eval": "stock"}
"""The fastest stock variant of each job, which the others are compared with."""


def settings(options: argparse.Namespace) -> Any:
    """Return the configuration, from which stock takes its numbers too."""
    from factories import config

    data = [f"data.path={options.data}", "data=lmsys"] if options.data else ["data.rows=600"]
    limits = [f"prompt.max_tokens={options.max_tokens}", f"train.rows_per_step={ROWS_PER_STEP}"]
    # What stock does.
    work = ["lora.first_layer=0", "train.epochs=1", "train.label_smoothing=0", "head.offset=none"]
    return config(*data, *limits, *work, *OVERRIDES.get(options.one, []))


def encoded_rows(options: argparse.Namespace, config: Any) -> tuple[Any, Any, list[Any]]:
    """Return tokenizer, encoder and the encoded rows of the job."""
    from lmsys_unsloth.data import dataset
    from lmsys_unsloth.model import loading
    from lmsys_unsloth.prompting.encoding import RowEncoder

    tokenizer = loading.load_tokenizer(config.model)
    encoder = RowEncoder(tokenizer, config.prompt)
    count = options.train_rows if options.job == "train" else options.eval_rows
    return tokenizer, encoder, encoder.encode(dataset.load_rows(config.data)[:count])


def this_project(options: argparse.Namespace) -> float:
    """Measure the seconds of training or scoring with this project."""
    from lmsys_unsloth.config.run_directory import Run
    from lmsys_unsloth.evaluate import scoring
    from lmsys_unsloth.model import loading, parity, trained_weights
    from lmsys_unsloth.model.answer_head import attach_head
    from lmsys_unsloth.report.tracking import NoTracker
    from lmsys_unsloth.train import training

    config = settings(options)
    tokenizer, encoder, rows = encoded_rows(options, config)
    model = loading.load_model(config.model, config.train)
    model = trained_weights.make_trainable(model, config.lora, config.train, seed=0)
    attach_head(model, config.head, encoder.answer_ids)
    if options.job == "eval":
        started = time.perf_counter()
        decoder = parity.choose_decoder(model, rows, fast=config.train.fast)
        scoring.score_rows(decoder, rows, scoring.tokens_per_batch(config.eval))
        return time.perf_counter() - started
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        training.train(
            model, tokenizer, rows, [[i] for i in range(len(rows))], config.train,
            run=Run(Path(folder)), seed=0, metric_logger=NoTracker(),
        )  # fmt: skip
    return time.perf_counter() - started


def stock(options: argparse.Namespace) -> float:
    """Measure the seconds of the same job with unsloth's model and trl's unmodified trainer."""
    from lmsys_unsloth.model import loading, trained_weights
    from lmsys_unsloth.model.unsloth_import import import_unsloth

    import_unsloth()
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = settings(options)
    tokenizer, encoder, rows = encoded_rows(options, config)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = loading.load_model(config.model.model_copy(update={"resident": "4bit"}))
    model = trained_weights.make_trainable(model, config.lora, config.train, seed=0)
    if options.job == "eval":
        return _stock_scoring(model, rows, encoder.answer_ids, tokenizer.pad_token_id)
    ids = [row.input_ids.tolist() for row in rows]
    answers = [[encoder.answer_ids[row.comparison.label][0]] for row in rows]
    both = [[*prompt, *answer] for prompt, answer in zip(ids, answers, strict=True)]
    masks = [[0] * len(prompt) + [1] for prompt in ids]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder, per_device_train_batch_size=ROWS_PER_STEP, num_train_epochs=1,
                learning_rate=config.train.learning_rate, lr_scheduler_type="cosine", max_length=None,
                use_cpu=not torch.cuda.is_available(), report_to="none", save_strategy="no",
                disable_tqdm=True, logging_steps=1000, completion_only_loss=True,
                gradient_checkpointing=options.one == "stock",
            ),
            train_dataset=Dataset.from_dict({"input_ids": both, "completion_mask": masks}),
            processing_class=tokenizer,
        )  # fmt: skip
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def _stock_scoring(model: Any, rows: list[Any], answer_ids: Any, pad_id: int) -> float:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    model.eval()
    started = time.perf_counter()
    with torch.no_grad():
        for start in range(0, len(rows), ROWS_PER_STEP):
            part = [
                torch.tensor(row.input_ids, dtype=torch.int64) for row in rows[start : start + ROWS_PER_STEP]
            ]
            ids = pad_sequence(part, batch_first=True, padding_value=pad_id)
            lengths = torch.tensor([len(row) for row in part])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=ids, attention_mask=mask).logits
            slots = logits[torch.arange(len(part)), lengths - 1]
            slots[:, [ids[0] for ids in answer_ids]].float().softmax(-1)
    return time.perf_counter() - started


def measure(options: argparse.Namespace, variant: str, job: str) -> dict[str, float]:
    """Run one measurement in a separate process."""
    command = [sys.executable, __file__, "--one", variant, "--job", job, *_arguments(options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{variant} {job} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{variant:18} {job:5} {found['seconds']:7.1f} s  {found['peak_gb']:5.2f} GB", flush=True)
    return found


def _arguments(options: argparse.Namespace) -> list[str]:
    names = ("train_rows", "eval_rows", "max_tokens", "data")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return [part for name, value in chosen.items() for part in ("--" + name.replace("_", "-"), str(value))]


def report(options: argparse.Namespace, found: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """Return the results as Markdown, with what is needed to reproduce them."""
    first = found["default", "train"][0]
    command = f"python benchmarks/cpu.py {_command_line(options)}"
    lines = [
        heading("lmsys_unsloth against stock trl on unsloth, on a CPU", command),
        f"SmolLM2-135M, 4-bit, LoRA r=16 on all linear layers, {ROWS_PER_STEP} rows per step, "
        f"{options.train_rows} rows trained on and\n{options.eval_rows} scored, at most "
        f"{options.max_tokens} tokens per row (mean {first['mean_tokens']:.0f}). Each measurement is a\n"
        f"separate process, the variants in turn; medians of {options.rounds}. Peak memory is the whole "
        f"process's; {first['imported_gb']:.1f} GB of it is\nPython and its libraries.",
    ]
    for job, variants in VARIANTS.items():
        count = options.train_rows if job == "train" else options.eval_rows
        speed = {key: [count / one["seconds"] for one in found[key, job]] for key in variants}
        peak = {key: statistics.median(one["peak_gb"] for one in found[key, job]) for key in variants}
        median = {key: statistics.median(values) for key, values in speed.items()}
        baseline = BASELINE[job]
        title = "training" if job == "train" else "scoring"
        lines.append(
            f"\n| {title} | rows/s | all measurements | peak GB | speed / {variants[baseline]} | memory / "
            f"{variants[baseline]} |\n|---|---|---|---|---|---|"
        )
        for key, name in variants.items():
            every = ", ".join(f"{value:.2f}" for value in speed[key])
            lines.append(
                f"| {name} | {median[key]:.2f} | {every} | {peak[key]:.2f} | "
                f"{median[key] / median[baseline]:.2f}× | {peak[key] / peak[baseline]:.2f}× |"
            )
    return "\n".join(lines) + "\n\nTargets: 1.5× the speed in training and in scoring, 0.7× the memory.\n"


def _command_line(options: argparse.Namespace) -> str:
    parts = _arguments(options)
    if options.data:
        parts[parts.index(str(options.data))] = Path(options.data).name
    return " ".join([*parts, "--rounds", str(options.rounds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", help="rows in any layout that data.path takes; default: simulated rows")
    parser.add_argument("--train-rows", type=int, default=64)
    parser.add_argument("--eval-rows", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=VARIANTS["train"], help=argparse.SUPPRESS)
    parser.add_argument("--job", choices=("train", "eval"), default="train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        from lmsys_unsloth.model import memory
        from lmsys_unsloth.model.unsloth_import import import_unsloth

        import_unsloth()
        imported = memory.peak_gb()
        config = settings(options)
        _, _, rows = encoded_rows(options, config)
        seconds = (stock if options.one.startswith("stock") else this_project)(options)
        mean = sum(len(row.input_ids) for row in rows) / len(rows)
        print(
            json.dumps(
                {
                    "seconds": seconds,
                    "peak_gb": memory.peak_gb(),
                    "imported_gb": imported,
                    "mean_tokens": mean,
                }
            )
        )
        return
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for job, variants in VARIANTS.items():
            for variant in variants:
                found.setdefault((variant, job), []).append(measure(options, variant, job))
    share = [
        sys.executable,
        str(ROOT / "benchmarks" / "cpu_share.py"),
        "--max-tokens",
        str(options.max_tokens),
    ]
    share += ["--data", options.data] if options.data else []
    done = subprocess.run(share, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    text = report(options, found) + "\n" + done.stdout[done.stdout.index("Share of") :]
    target = ROOT / "benchmarks" / "results" / f"cpu-{datetime.date.today()}.md"
    target.write_text(text, encoding="utf-8")
    print(text, f"\n{os.path.relpath(target)}")


if __name__ == "__main__":
    main()
