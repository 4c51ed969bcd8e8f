"""Contradictions between values of a configuration that are valid on their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsys_unsloth.config import placeholders
from lmsys_unsloth.config.durations import in_words
from lmsys_unsloth.config.engine_schema import EngineConfig
from lmsys_unsloth.config.head_schema import HeadConfig
from lmsys_unsloth.config.prompt_schema import PromptConfig
from lmsys_unsloth.config.schema import (
    DataConfig,
    EvalConfig,
    LoraConfig,
    ModelConfig,
    TrainConfig,
)

TRAINED_HEADS = ("lm_trained", "linear")
"""Kinds of heads with weights of their own."""

GGUF_REMEDY = (
    "it holds GGUF files, a format of llama.cpp that bitsandbytes does not read; name a folder with the "
    "safetensors files that they were made from"
)


def contradictions(valid: Mapping[str, Any]) -> list[str]:
    """Problems within and between sections, one line each.

    Args:
        valid: sections and values that are valid on their own, by name; the others are absent.
    """
    fold: int | None = valid.get("fold")
    model: ModelConfig | None = valid.get("model")
    prompt: PromptConfig | None = valid.get("prompt")
    data: DataConfig | None = valid.get("data")
    lora: LoraConfig | None = valid.get("lora")
    train: TrainConfig | None = valid.get("train")
    problems = prompt_problems(prompt) if prompt else []
    if prompt and model and prompt.max_tokens > model.max_seq_length:
        problems.append(
            f"prompt.max_tokens = {prompt.max_tokens}: must not be above model.max_seq_length = "
            f"{model.max_seq_length}; lower the first or raise the second"
        )
    if fold is not None and data and fold >= data.folds:
        problems.append(f"fold = {fold}: data.folds = {data.folds}, so the folds are 0 to {data.folds - 1}")
    if data and data.path is None and data.name != "simulated":
        problems.append(
            f"data.path = None: data={data.name} needs data.path=FILE "
            "(CSV, CSV.gz, Parquet, JSONL or hf:owner/name)"
        )
    if model and model.name == "auto" and model.path is None:
        problems.append("model.path = None: model=auto needs model.path=DIR, a folder in Hugging Face format")
    elif model and not (model.path or model.package or model.repo):
        problems.append("model.path, model.package, model.repo: all null; one must say where the weights are")
    if model and model.path is not None and not Path(model.path, "config.json").is_file():
        problems.append(
            f"model.path = {model.path!r}: must be a folder with a config.json (Hugging Face format)"
            + (f"; {GGUF_REMEDY}" if _holds_gguf(Path(model.path)) else "")
        )
    if lora and model and lora.kind == "full" and model.load_in_4bit:
        problems.append(
            "model.load_in_4bit = True: 4-bit weights can't be trained themselves; set "
            "model.load_in_4bit=false, or train adapters (lora=default)"
        )
    if train and train.patience is not None and train.evaluate_every is None:
        problems.append(
            f"train.patience = {train.patience}: has a meaning only with train.evaluate_every; "
            "set both or none"
        )
    evaluation: EvalConfig | None = valid.get("eval")
    if evaluation and evaluation.time_budget is not None and evaluation.swap != "uncertain":
        problems.append(
            f"eval.time_budget = {in_words(evaluation.time_budget)}: decides how many rows are scored with "
            f"swapped responses too, but eval.swap = {evaluation.swap!r}; set eval.swap=uncertain"
        )
    problems += _engine_problems(valid.get("engine"))
    return problems + _head_problems(valid.get("head"), data, train, valid.get("eval"))


def _engine_problems(engine: EngineConfig | None) -> list[str]:
    """What an engine lacks."""
    if engine is None:
        return []
    path, kind = engine.path, engine.kind
    if kind == "openai" and not (engine.url or "").startswith(("http://", "https://")):
        return [f"engine.url = {engine.url!r}: engine=openai needs engine.url=http://HOST:PORT/v1"]
    if kind == "llama_cpp" and not (path and Path(path).is_file()):
        return [f"engine.path = {path!r}: engine=llama_cpp needs engine.path=FILE.gguf, a file that exists"]
    needs_folder = kind == "classifier" or (kind == "vllm" and path is not None)
    if needs_folder and not (path and Path(path, "config.json").is_file()):
        return [f"engine.path = {path!r}: engine={kind} needs engine.path=DIR, a folder with config.json"]
    return []


def _holds_gguf(path: Path) -> bool:
    return path.suffix == ".gguf" or any(path.glob("*.gguf"))


def _head_problems(
    head: HeadConfig | None, data: DataConfig | None, train: TrainConfig | None, evaluation: EvalConfig | None
) -> list[str]:
    """Settings that a head does not work with; sections that are not valid are None."""
    problems = []
    if head and train and head.kind != "lm" and train.loss != "answers":
        problems.append(
            f"train.loss = {train.loss!r}: needs the probabilities of all tokens, but head.kind={head.kind} "
            "gives those of the answers; set train.loss=answers or head.kind=lm"
        )
    elif head and train and head.offset != "none" and train.loss != "answers":
        problems.append(
            f"train.loss = {train.loss!r}: needs the probabilities of all tokens, but "
            f"head.offset={head.offset} is known for the answers only; set train.loss=answers or "
            "head.offset=none"
        )
    if head and head.kind == "davidson":
        reason = "head.kind=davidson averages both orders of the responses"
        if data and data.swap != "both":
            problems.append(f"data.swap = {data.swap!r}: {reason}; set data.swap=both")
        if evaluation and evaluation.swap != "average":
            problems.append(f"eval.swap = {evaluation.swap!r}: {reason}; set eval.swap=average")
    return problems


def prompt_problems(prompt: PromptConfig) -> list[str]:
    """Problems of a template that can be found without a tokenizer, one line each."""
    body = [item if isinstance(item, str) else {"each_turn": item.each_turn} for item in prompt.body]
    problems = [f"prompt.body: {problem}" for problem in placeholders.problems(body)]
    for key, text in {"system": prompt.system or "", "reply": prompt.reply}.items():
        problems += [f"prompt: {problem}" for problem in placeholders.fixed_text_problems(key, text)]
    if not prompt.chat and not isinstance(prompt.body[-1], str):
        problems.append(
            "prompt.body: must end with a fixed text: without one the last answer's own text would decide "
            'how the model reads the answer slot; add for example "Best response:"'
        )
    if prompt.reply and not prompt.chat:
        problems.append(
            f"prompt.reply = {prompt.reply!r}: has a meaning only with prompt.chat=true; "
            "put it at the end of prompt.body"
        )
    threshold = prompt.truncation.when_longer_than
    if threshold and threshold > prompt.max_tokens:
        problems.append(
            f"prompt.truncation.when_longer_than = {threshold}: must not be above "
            f"prompt.max_tokens = {prompt.max_tokens}; lower the first or raise the second"
        )
    answers = prompt.answers.spellings()
    if len(set(answers.values())) < len(answers):
        problems.append(f"prompt.answers = {answers}: must be different texts")
    return problems
