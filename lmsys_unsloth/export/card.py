"""The model card of an export: what the model predicts, how well, on what it was trained, and how to run it.

It holds numbers and names only: no text of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lmsys_unsloth import __version__
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import replacing, write_text
from lmsys_unsloth.data.form.offset import OFFSET_FILE
from lmsys_unsloth.evaluate.predictions import read_labelled
from lmsys_unsloth.export.exported import Exported

FILE = "README.md"
PLOT = "reliability.png"

RUNNING = {
    "adapter": "LoRA adapters in PEFT's format, for the base model named above.",
    "merged16": "Weights with merged adapters, as transformers and vLLM read them. The prediction is the "
    "softmax over the answer tokens at the last position.",
    "classifier": "Sequence classification: the logits are those of the answers, in the order of `id2label`.",
    "gguf": "`model.gguf` for llama.cpp. The prediction is the softmax over the answer tokens at the last "
    "position.",
    "fp8": "Linear layers in 8-bit floating point (compressed-tensors), for vLLM on GPUs that compute it.",
    "gptq8": "Linear layers in 8-bit integers, rounded by GPTQ (compressed-tensors), for vLLM.",
}
OFFSET = (
    f"**The weights alone do not give these predictions.** `{OFFSET_FILE}` holds a logistic regression on "
    "the form of the responses, whose log-probabilities are added to the logits of the answers, once these "
    "are multiplied by its `logit_scale` (`head.offset=form`). lmsys_unsloth does that; another program must "
    "do it itself."
)
RELATIONS = {"adapter": "adapter", "gguf": "quantized", "fp8": "quantized", "gptq8": "quantized"}
"""What the hub calls a model that is derived from a base model; others are ``finetune``."""


def write(folder: Path, runs: Sequence[Run], config: Config, exported: Exported) -> None:
    """Write ``README.md``, and ``reliability.png`` where labelled predictions are stored."""
    plotted = _plot(folder, runs)
    write_text(folder / FILE, card_text(runs, config, exported, plotted=plotted))


def card_text(runs: Sequence[Run], config: Config, exported: Exported, *, plotted: bool) -> str:
    """The card as Markdown with metadata of the Hugging Face hub in YAML."""
    metrics = [run.metrics_description() for run in runs]
    scored = [m for m in metrics if "log_loss" in m]
    header = yaml.safe_dump(_metadata(config, exported.format, scored), sort_keys=False, allow_unicode=True)
    answers = config.prompt.answers.spellings().values()
    number = f", {exported.dtype}" if exported.dtype else ""
    sections = [
        f"---\n{header}---",
        f"# {config.model.name}, fine-tuned to predict which of two chatbot answers a person prefers",
        "Given a prompt and two responses, the model returns the probabilities that a person prefers A, "
        "prefers B, or calls it a tie.",
        f"## Format\n\n`{exported.format}`{number}. {RUNNING[exported.format]}",
        OFFSET if config.head.offset == "form" else "",
        _agreement(exported),
        "## How to use it",
        "    from lmsys_unsloth import Predictor\n"
        '    predictor = Predictor.load("THIS_FOLDER")\n'
        '    predictor.predict([{"prompt": "…", "response_a": "…", "response_b": "…"}])',
        f"With lmsys_unsloth {__version__}. The prompt is the template `{config.prompt.name}`, with at most "
        f"{config.prompt.max_tokens} tokens; the answers are {', '.join(f'`{text}`' for text in answers)}. "
        "Longer conversations are shortened as in training.",
        _scores(runs, scored, plotted),
        _training(runs, config),
        f"## Licence\n\nThat of the base model: {config.model.licence}. The data have their own.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(config: Config, format: str, scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    base = config.model.repo or config.model.name
    values: dict[str, Any] = {
        "library_name": {"adapter": "peft", "gguf": "gguf"}.get(format, "transformers"),
        "base_model": base,
        "base_model_relation": RELATIONS.get(format, "finetune"),
        "pipeline_tag": "text-classification" if format == "classifier" else "text-generation",
        "tags": ["preference", "reward-model", "lmsys_unsloth", *(["lora"] if format == "adapter" else [])],
    }
    if scored:
        found = [
            {"type": name, "value": round(float(scored[0][name]), 4), "name": name.replace("_", " ")}
            for name in ("log_loss", "accuracy")
        ]
        dataset = {"name": config.data.name, "type": config.data.name}
        task = {"type": "text-classification", "name": "preference of one of two responses"}
        results = [{"task": task, "dataset": dataset, "metrics": found}]
        values["model-index"] = [{"name": f"{config.model.name}-{config.prompt.name}", "results": results}]
    return values


def _agreement(exported: Exported) -> str:
    if exported.agreement is None:
        return "The exported model was not compared with the run."
    merged = "" if exported.base == "trained" else " Adapters were merged into the 16-bit base model."
    return f"Compared with the run it was made from: {exported.agreement}.{merged}"


def _scores(runs: Sequence[Run], scored: Sequence[Mapping[str, Any]], plotted: bool) -> str:
    if not scored:
        return "## Scores\n\nNo rows with known outcomes were scored."
    lines = ["## Scores", ""]
    if len(runs) > 1:
        lines += [f"Of the {len(runs)} runs whose adapters were averaged, each on its own fold:", ""]
    lines += [
        "| rows | log loss | 95% interval | accuracy | class prior | logistic regression |",
        "|---" * 6 + "|",
    ]
    for m in scored:
        low, high = m.get("log_loss_ci") or (None, None)
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        regression = (m.get("baselines") or {}).get("logistic_regression")
        lines.append(
            f"| {m['n']:,} | {m['log_loss']:.4f} | {interval} | {m['accuracy']:.1%} "
            f"| {m['baselines']['class_prior']:.4f} | {'' if regression is None else f'{regression:.4f}'} |"
        )
    if plotted:
        lines += ["", f"![Predicted probabilities against observed shares]({PLOT})"]
    return "\n".join(lines)


def _training(runs: Sequence[Run], config: Config) -> str:
    data = runs[0].data_description()
    facts = data.get("source") or {}
    rows = facts.get("rows")
    fingerprint = str(data.get("fingerprint") or "unknown")
    commands = [command for run in runs if (command := run.environment_description().get("command"))]
    folds = [str(run.settings().get("fold")) for run in runs]
    lines = [
        "## Training",
        "",
        f"- Data: {config.data.name}"
        + (f", {rows:,} rows" if rows else "")
        + f"; content hash `{fingerprint}`.",
        f"- Validation fold: {', '.join(folds)} of {config.data.folds}, divided by prompt.",
        f"- LoRA: rank {config.lora.r}, scale {config.lora.alpha}, from layer {config.lora.first_layer} on; "
        f"{config.train.epochs:g} epochs, learning rate {config.train.learning_rate:g}, seed {config.seed}.",
        "",
        *(f"    {command}" for command in commands),
    ]
    return "\n".join(lines)


def _plot(folder: Path, runs: Sequence[Run]) -> bool:
    """Draw predicted probabilities against observed shares; returns whether there was anything to draw."""
    from lmsys_unsloth.report import plots

    labelled = read_labelled(runs)
    if labelled is None:
        return False
    figures = plots.plot_all(labelled.probabilities.astype(np.float64), labelled.labels, None, [])
    with replacing(folder / PLOT) as temporary:
        temporary.write_bytes(plots.render_png(figures["reliability_a"][1]))
    return True
