"""Ours against trl's stock SFTTrainer on unsloth, on a CPU: rows a second and peak memory.

    python benchmarks/cpu.py --data train.csv        # real rows; without --data, simulated ones
    python benchmarks/cpu.py --data train.csv --rounds 5 --train-rows 64 --eval-rows 128

Both fine-tune SmolLM2 in 4 bits (LoRA r=16 on all linear layers, 8 rows an optimiser step, the same
rows, prompt and learning rate) and score rows. Stock is what a user of trl writes: prompt and completion
as token ids, padded batches in shuffled order, loss on the completion only; it scores with the model's
ordinary forward. trl checkpoints every layer unless told otherwise, so both are measured. Every
measurement runs in a process of its own, in turn; medians are reported in ``results/cpu-DATE.md``.
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
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from heading import heading

ROWS_PER_STEP = 8
VARIANTS = {
    "train": {
        "stock": "stock, as it comes (all layers checkpointed)",
        "stock-kept": "stock, nothing checkpointed",
        "ours": "ours",
        "ours-ordinary": "ours, `train.fast=false`",
        "ours-4bit": "ours, `model.resident=4bit`",
        "ours-checkpointed": "ours, `train.checkpoint=all`",
        "ours-frozen": "ours, `lora.first_layer=15`",
    },
    "eval": {
        "stock": "stock",
        "ours": "ours",
        "ours-ordinary": "ours, `train.fast=false`",
        "ours-4bit": "ours, `model.resident=4bit`",
    },
}
OVERRIDES = {
    "ours-ordinary": ["train.fast=false"],
    "ours-4bit": ["model.resident=4bit"],
    "ours-checkpointed": ["train.checkpoint=all"],
    "ours-frozen": ["lora.first_layer=15"],
}
AGAINST = {"train": "stock-kept", "eval": "stock"}
"""The faster of the stock settings: what ours is compared with."""


def settings(options: argparse.Namespace) -> Any:
    """The configuration that both sides take their numbers from."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from lmsys_unsloth.config.parsing import parse_config

    data = [f"data.path={options.data}", "data=lmsys"] if options.data else ["data.rows=600"]
    data += OVERRIDES.get(options.one, [])
    overrides = [*data, f"prompt.max_tokens={options.max_tokens}", f"train.rows_per_step={ROWS_PER_STEP}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    composed.pop("resume")
    return parse_config(composed)


def encoded_rows(options: argparse.Namespace, config: Any) -> tuple[Any, Any, list[Any]]:
    """Tokenizer, encoder, and as many rows as are asked for, the same for both sides."""
    from lmsys_unsloth.data import dataset
    from lmsys_unsloth.model import loading
    from lmsys_unsloth.prompting.encoding import RowEncoder

    tokenizer = loading.load_tokenizer(config.model)
    encoder = RowEncoder(tokenizer, config.prompt)
    count = options.train_rows if options.job == "train" else options.eval_rows
    return tokenizer, encoder, encoder.encode(dataset.load_rows(config.data)[:count])


def ours(options: argparse.Namespace) -> float:
    """Seconds of training or scoring with this project."""
    from lmsys_unsloth.config.run_directory import Run
    from lmsys_unsloth.evaluate import scoring
    from lmsys_unsloth.model import loading, parity
    from lmsys_unsloth.report.tracking import NoTracker
    from lmsys_unsloth.train import training

    config = settings(options)
    tokenizer, encoder, rows = encoded_rows(options, config)
    model = loading.load_model(config.model, config.train)
    model = loading.add_adapters(model, config.lora, config.train, seed=0)
    if options.job == "eval":
        started = time.perf_counter()
        decoder = parity.agreeing_decoder(model, rows, fast=config.train.fast)
        scoring.score_rows(decoder, rows, encoder.answer_ids, config.eval.tokens_per_batch)
        return time.perf_counter() - started
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        training.train(
            model, tokenizer, rows, [[i] for i in range(len(rows))], config.train,
            answer_ids=encoder.answer_ids, run=Run(Path(folder)), seed=0, tracker=NoTracker(),
        )  # fmt: skip
    return time.perf_counter() - started


def stock(options: argparse.Namespace) -> float:
    """Seconds of the same with unsloth's model and trl's trainer as they come."""
    from lmsys_unsloth.model import loading

    loading.import_unsloth()
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = settings(options)
    tokenizer, encoder, rows = encoded_rows(options, config)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = loading.load_model(config.model.model_copy(update={"resident": "4bit"}))
    model = loading.add_adapters(model, config.lora, config.train, seed=0)
    if options.job == "eval":
        return _stock_scoring(model, rows, encoder.answer_ids, tokenizer.pad_token_id)
    ids = [row.input_ids.tolist() for row in rows]
    answers = [[encoder.answer_ids[row.label][0]] for row in rows]
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


def measure(options: argparse.Namespace, who: str, job: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", who, "--job", job, *_passed_on(options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{who} {job} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{who:18} {job:5} {found['seconds']:7.1f} s  {found['peak_gb']:5.2f} GB", flush=True)
    return found


def _passed_on(options: argparse.Namespace) -> list[str]:
    names = ("train_rows", "eval_rows", "max_tokens", "data")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return [part for name, value in chosen.items() for part in ("--" + name.replace("_", "-"), str(value))]


def report(options: argparse.Namespace, found: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """The result as Markdown, with what must be known to get it again."""
    first = found["ours", "train"][0]
    lines = [
        heading("Ours against stock trl on unsloth, on a CPU", f"python benchmarks/cpu.py {_named(options)}"),
        f"SmolLM2-135M, 4-bit, LoRA r=16 on all linear layers, {ROWS_PER_STEP} rows a step, "
        f"{options.train_rows} rows trained on and\n{options.eval_rows} scored, at most "
        f"{options.max_tokens} tokens a row ({first['mean_tokens']:.0f} on average). Each measurement is a\n"
        f"process of its own, in turn, medians of {options.rounds}. Peak memory is that of the whole "
        f"process; {first['imported_gb']:.1f} GB of it is\nPython and its libraries.",
    ]
    for job, variants in VARIANTS.items():
        count = options.train_rows if job == "train" else options.eval_rows
        speed = {who: [count / one["seconds"] for one in found[who, job]] for who in variants}
        peak = {who: statistics.median(one["peak_gb"] for one in found[who, job]) for who in variants}
        middle = {who: statistics.median(values) for who, values in speed.items()}
        rival = AGAINST[job]
        title = "training" if job == "train" else "scoring"
        lines.append(
            f"\n| {title} | rows/s | all measurements | peak GB | speed against {variants[rival]} | memory "
            "against it |\n|---|---|---|---|---|---|"
        )
        for who, name in variants.items():
            every = ", ".join(f"{value:.2f}" for value in speed[who])
            lines.append(
                f"| {name} | {middle[who]:.2f} | {every} | {peak[who]:.2f} | "
                f"{middle[who] / middle[rival]:.2f}× | {peak[who] / peak[rival]:.2f}× |"
            )
    return "\n".join(lines) + "\n\nAims: 1.5× the speed in training and in scoring, 0.7× the memory.\n"


def _named(options: argparse.Namespace) -> str:
    parts = _passed_on(options)
    if options.data:
        parts[parts.index(str(options.data))] = Path(options.data).name
    return " ".join([*parts, "--rounds", str(options.rounds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", help="rows in any layout that dataset.path takes")
    parser.add_argument("--train-rows", type=int, default=64)
    parser.add_argument("--eval-rows", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=VARIANTS["train"], help=argparse.SUPPRESS)
    parser.add_argument("--job", choices=("train", "eval"), default="train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        from lmsys_unsloth.model import loading, memory

        loading.import_unsloth()
        imported = memory.peak_gb()
        config = settings(options)
        _, _, rows = encoded_rows(options, config)
        seconds = (ours if options.one.startswith("ours") else stock)(options)
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
            for who in variants:
                found.setdefault((who, job), []).append(measure(options, who, job))
    text = report(options, found)
    target = ROOT / "benchmarks" / "results" / f"cpu-{datetime.date.today()}.md"
    target.write_text(text, encoding="utf-8")
    print(text, f"\n{os.path.relpath(target)}")


if __name__ == "__main__":
    main()
