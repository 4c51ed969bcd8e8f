"""The ``prompt`` section of a run's configuration: the template that renders a row as text."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from lmsys_unsloth.config import placeholders
from lmsys_unsloth.config.schema import Section


class AnswersConfig(Section):
    """Answer for each outcome, spelled exactly as it follows the prompt's last character."""

    a: str = Field(min_length=1)
    b: str = Field(min_length=1)
    tie: str = Field(min_length=1)
    both_bad: str | None = Field(default=None, min_length=1)
    """Fourth answer for rows whose raters found both responses bad; its probability counts as a tie. null:
    such rows are ties."""

    def spellings(self) -> dict[str, str]:
        """Return the answers by name: ``a``, ``b``, ``tie`` and, if there is one, ``both_bad``."""
        return {name: answer for name, answer in self if answer is not None}


class EachTurnConfig(Section):
    """A text with placeholders (:mod:`~lmsys_unsloth.config.placeholders`), repeated for every turn."""

    each_turn: str = Field(min_length=1)


class LimitsConfig(Section):
    """Maximum tokens of one user message and of one response in truncated rows; null: no limit."""

    prompt: PositiveInt | None = None
    response: PositiveInt | None = None


class TruncationConfig(Section):
    """How the conversation of a row that is too long is shortened; the template's own text never is.

    If the turns that are kept are still too long, the longest texts are cut to a common length.
    """

    when_longer_than: PositiveInt | None = None
    """Truncate rows with more tokens than this; null: more than ``prompt.max_tokens``."""
    turns: Literal["drop_oldest", "last_only"] = "drop_oldest"
    """Turns to keep. ``drop_oldest``: drop whole turns, oldest first, until the row fits or only the newest
    is left. ``last_only``: keep the newest turn only."""
    limits: LimitsConfig = LimitsConfig()
    """Limits of single texts, applied before turns are dropped."""
    cut: Literal["head", "middle", "tail"] = "middle"
    """Part of a text that is removed."""
    mark: str = " […]"
    """Text that replaces a removed part."""
    dropped_turns_mark: str = ""
    """Text that replaces dropped turns."""


class PromptConfig(Section):
    """Prompt template: renders a row as text that ends where the answer follows (``docs/prompts.md``)."""

    name: str
    """Name of the template in reports and run directories."""
    source: str = ""
    """Who published the template, and how it differs from the publication."""
    file: str | None = None
    """User's template file (:mod:`~lmsys_unsloth.config.prompt_file`), which replaces this section."""
    answers: AnswersConfig
    """Answers to choose from."""
    multi_token_answers: bool = False
    """Allow answers of several tokens, scored by the log-probability of all of them."""
    max_tokens: PositiveInt = 2048
    """Maximum tokens of a row, from BOS to the answer slot."""
    chat: bool = False
    """Format the text as a user message with the chat template of the model's tokenizer."""
    system: str | None = None
    """System message of a chat (prepended to the user message for models without one); without ``chat``,
    text at the start of the prompt."""
    body: list[str | EachTurnConfig] = Field(min_length=1)
    """Fixed texts and ``each_turn`` pieces, in order."""
    reply: str = ""
    """Chat only: start of the model's message, directly before the answer."""
    truncation: TruncationConfig = TruncationConfig()
    """How rows that are too long are shortened."""

    @field_validator("body", mode="before")
    @classmethod
    def _check_items(cls, body: Any) -> Any:
        """Report each wrong item once; pydantic would report it once for each type of the union."""
        if not isinstance(body, list):
            raise ValueError("must be a list of texts and `each_turn: text` items")
        if wrong := placeholders.form_problems(body):
            raise ValueError("; ".join(wrong))
        return body
