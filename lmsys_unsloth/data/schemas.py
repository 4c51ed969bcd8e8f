"""Conversion of a source's records to :class:`Comparison`, with every reason why a record can't be used.

Three layouts are known; ``auto`` tells them apart:

``kaggle``
    LMSYS train.csv and arena-human-preference-55k. ``prompt, response_a, response_b`` are JSON
    lists of turns.
``plain``
    WSDM Cup. The same three columns hold plain text, one turn. Assumed for a file without the columns
    ``winner_model_a, winner_model_b, winner_tie`` whose prompts mostly are not JSON lists.
``conversations``
    arena-human-preference-100k, -140k and chatbot_arena_conversations. ``conversation_a`` and
    ``conversation_b`` are lists of ``{"role": ..., "content": ...}``.

The outcome is in ``winner_model_a, winner_model_b, winner_tie`` (one is 1) or in ``winner``
(``model_a``, ``model_b``, ``tie``, ``tie (bothbad)``, ``both_bad``); a file without either is unlabelled.
Optional columns: ``question_id`` for ``id``; ``model_a``, ``model_b``; soft labels ``p_a, p_b, p_tie`` or
``votes_a, votes_b, votes_tie``; ``p_true_a, p_true_b, p_true_tie`` (simulated rows). Everything else is
kept in ``Comparison.extra`` when it is a single value.

The module :mod:`lmsys_unsloth.data.cells` says how text is treated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data import cells
from lmsys_unsloth.data.cells import CellError, Problem, Turns
from lmsys_unsloth.data.comparison import Comparison

Layout = Literal["kaggle", "plain", "conversations"]
Value = TypeVar("Value")

TEXTS = ("prompt", "response_a", "response_b")
CONVERSATIONS = ("conversation_a", "conversation_b")
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
WINNER = ("winner",)
PROBABILITIES = ("p_a", "p_b", "p_tie")
VOTES = ("votes_a", "votes_b", "votes_tie")
TRUE_PROBABILITIES = ("p_true_a", "p_true_b", "p_true_tie")
IDS = ("id", "question_id")
MODELS = ("model_a", "model_b")
KNOWN_COLUMNS = frozenset(
    {*TEXTS, *CONVERSATIONS, *WINNERS, *PROBABILITIES, *VOTES, *TRUE_PROBABILITIES, *IDS, *MODELS, *WINNER}
)


@dataclass(frozen=True, slots=True)
class Schema:
    """Meaning of the columns of one source."""

    layout: Layout
    id_column: str
    outcome_columns: tuple[str, ...] | None
    """None for an unlabelled source, whose rows can only be predicted."""
    soft_columns: tuple[str, ...] | None
    true_columns: tuple[str, ...] | None
    extra_columns: tuple[str, ...]


def schema_of(
    columns: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
    layout: Layout | Literal["auto"],
    where: str,
    soft_labels: bool,
) -> Schema:
    """Determine the schema of a source from its column names and some records.

    Raises:
        UserError: required columns of the layout are missing.
    """
    if layout == "auto":
        layout = _recognise(set(columns), sample)
    _require(layout, columns, where)

    def first_complete(*groups: tuple[str, ...]) -> tuple[str, ...] | None:
        return next((group for group in groups if set(columns).issuperset(group)), None)

    return Schema(
        layout=layout,
        id_column=next(name for name in IDS if name in columns),
        outcome_columns=first_complete(WINNERS, WINNER),
        soft_columns=first_complete(PROBABILITIES, VOTES) if soft_labels else None,
        true_columns=first_complete(TRUE_PROBABILITIES),
        extra_columns=tuple(name for name in columns if name not in KNOWN_COLUMNS),
    )


def _recognise(names: set[str], sample: Sequence[Mapping[str, Any]]) -> Layout:
    if names.issuperset(CONVERSATIONS) and not names.issuperset(TEXTS):
        return "conversations"
    if names.issuperset(WINNERS) or not names.issuperset(TEXTS):
        return "kaggle"
    # when most prompts look like JSON lists, one that does not is broken, not plain text
    prompts = [str(record.get("prompt") or "").strip() for record in sample]
    lists = sum(prompt.startswith("[") and prompt.endswith("]") for prompt in prompts)
    return "kaggle" if 2 * lists > len(prompts) else "plain"


def _require(layout: Layout, columns: Sequence[str], where: str) -> None:
    needed = CONVERSATIONS if layout == "conversations" else TEXTS
    missing = [name for name in needed if name not in columns]
    if not any(name in columns for name in IDS):
        missing.insert(0, "id")
    if any(name in columns for name in WINNERS):
        missing += [name for name in WINNERS if name not in columns]
    if missing:
        raise UserError(
            f"{where}: column{'s' * (len(missing) > 1)} {', '.join(missing)} missing; found "
            f"{', '.join(columns) or 'none'}.\n"
            f"  The {layout} layout needs {', '.join(('id', *needed))} and, when labelled, "
            f"{', '.join(WINNERS)} or winner.\n"
            "  Rename the columns, name the layout (data.layout=kaggle|plain|conversations), or convert a "
            "public set of preferences: `lmsys-unsloth data convert` (docs/data.md)."
        )


def parse_record(
    record: Mapping[str, Any], schema: Schema, notes: Counter[str]
) -> tuple[Comparison | None, str, list[Problem]]:
    """Read one record.

    Args:
        record: column name → cell (text from CSV, typed values from other sources).
        notes: receives counts of repaired cells: ``null_turns``, ``empty_turns``, ``repaired_surrogates``.

    Returns:
        the row (None when there are problems), its id as far as known, and all problems.
    """
    problems: list[Problem] = []

    def attempt(read: Callable[..., Value], *arguments: Any) -> Value | None:
        try:
            return read(*arguments)
        except CellError as error:
            problems.append(error.problem)
            return None

    def distribution(columns: tuple[str, ...] | None) -> cells.Triple | None:
        return attempt(cells.distribution, record, columns, columns == VOTES) if columns else None

    row_id = attempt(cells.identifier, record.get(schema.id_column))
    turns = attempt(READERS[schema.layout], record, notes)
    soft, true = distribution(schema.soft_columns), distribution(schema.true_columns)
    label = cells.most_likely(soft) if soft else None
    if schema.outcome_columns == WINNER:
        label = attempt(cells.outcome, record.get("winner"))
    elif schema.outcome_columns:
        label = attempt(cells.outcome_of_flags, record, schema.outcome_columns)
    if row_id is None or turns is None or problems:
        return None, row_id or "", problems
    row = Comparison(
        row_id,
        *turns,
        label=label,
        soft_label=soft,
        true_probabilities=true,
        model_a=cells.optional_text(record.get("model_a")),
        model_b=cells.optional_text(record.get("model_b")),
        extra=_extra(record, schema.extra_columns),
        both_bad=schema.outcome_columns == WINNER and record.get("winner") in cells.BOTH_BAD,
    )
    return row, row_id, []


def _extra(record: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str | int | float | bool]:
    """Single values of the remaining columns, without lists and mappings."""
    return {
        name: cells.encodable(value) if isinstance(value, str) else value
        for name in columns
        if isinstance(value := record.get(name), str | int | float | bool)
    }


def _turn_lists(record: Mapping[str, Any], notes: Counter[str]) -> Turns:
    prompts, responses_a, responses_b = (cells.turn_list(record.get(name), name, notes) for name in TEXTS)
    return cells.aligned(prompts, responses_a, responses_b, TEXTS)


def _single_turn(record: Mapping[str, Any], notes: Counter[str]) -> Turns:
    prompt, response_a, response_b = (cells.turn(record.get(name), name, 0, notes) for name in TEXTS)
    return (prompt,), (response_a,), (response_b,)


def _conversations(record: Mapping[str, Any], notes: Counter[str]) -> Turns:
    (prompts, responses_a), (prompts_b, responses_b) = (
        cells.dialogue(record.get(name), name, notes) for name in CONVERSATIONS
    )
    if len(prompts) == len(prompts_b) and prompts != prompts_b:
        raise CellError("different prompts", "the user's turns in conversation_a and conversation_b differ")
    return cells.aligned(prompts, responses_a, responses_b, ("the user", *CONVERSATIONS))


READERS: dict[Layout, Callable[[Mapping[str, Any], Counter[str]], Turns]] = {
    "kaggle": _turn_lists,
    "plain": _single_turn,
    "conversations": _conversations,
}
