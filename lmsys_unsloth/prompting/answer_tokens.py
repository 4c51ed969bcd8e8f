"""The answer slot: each answer must be one token of its own, right where the prompt ends.

``"Tie"`` is one token after a space in Llama 3 and two without it; whether an answer is one token,
and which, is known only in context. So it is checked there, before any weights are loaded:
``ids(text + answer) == ids(text) + [answer id]``.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmsys_unsloth.config.schema import PromptConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import LABELS
from lmsys_unsloth.prompting.tokenization import Vocabulary

AnswerIds = tuple[tuple[int, ...], ...]
"""Token ids of the answers in :data:`~lmsys_unsloth.comparisons.LABELS` order."""


def answer_ids(vocabulary: Vocabulary, prompt: PromptConfig, contexts: Sequence[str]) -> AnswerIds:
    """Ids of the three answers after each of ``contexts``, which must agree.

    Args:
        contexts: rendered prompts from the last special token on, for different conversations.

    Raises:
        UserError: an answer merges with the text before it, has several tokens (unless the template
            allows that), or equals or begins another; with the ids and spellings that would work.
    """
    problems: list[str] = []
    found: dict[str, tuple[int, ...]] = {}
    for label in LABELS:
        answer = getattr(prompt.answers, label)
        per_context = [_continuation(vocabulary, context, answer) for context in contexts]
        ids = per_context[0]
        if ids is None or any(other != ids for other in per_context):
            problems.append(_merges(vocabulary, label, answer, contexts[0]))
        elif len(ids) > 1 and not prompt.multi_token_answers:
            pieces = ", ".join(f"{vocabulary.decode([i])!r} {i}" for i in ids)
            problems.append(
                f"answers.{label} = {answer!r} is {len(ids)} tokens here ({pieces}), but must be one"
            )
        else:
            found[label] = ids
    problems += _clashes(prompt, found)
    if problems:
        title = f"prompt={prompt.name}: the answers don't fit this tokenizer:"
        raise UserError("\n  ".join([title, *problems, *_proposals(vocabulary, prompt, contexts)]))
    return tuple(found[label] for label in LABELS)


def _continuation(vocabulary: Vocabulary, context: str, answer: str) -> tuple[int, ...] | None:
    """Ids that the answer adds to the context; None when it changes the context's own."""
    before, whole = (tuple(ids.tolist()) for ids in vocabulary.encode([context, context + answer]))
    return whole[len(before) :] if whole[: len(before)] == before and len(whole) > len(before) else None


def _merges(vocabulary: Vocabulary, label: str, answer: str, context: str) -> str:
    before, whole = (ids.tolist() for ids in vocabulary.encode([context, context + answer]))
    tail = context[-12:]
    return (
        f"answers.{label} = {answer!r} merges with the text before it: {tail!r} ends in {before[-3:]}, "
        f"{tail + answer!r} in {whole[-3:]}"
    )


def _clashes(prompt: PromptConfig, found: dict[str, tuple[int, ...]]) -> list[str]:
    """Answers that can't be told apart: equal ones, or one that begins another."""
    return [
        f"answers.{one} = {getattr(prompt.answers, one)!r} {list(found[one])} "
        + ("equals" if found[one] == found[other] else "begins")
        + f" answers.{other} = {getattr(prompt.answers, other)!r} {list(found[other])}"
        for one in found
        for other in found
        if one != other
        and found[other][: len(found[one])] == found[one]
        and (found[one] != found[other] or LABELS.index(one) < LABELS.index(other))
    ]


def _proposals(vocabulary: Vocabulary, prompt: PromptConfig, contexts: Sequence[str]) -> list[str]:
    """For each outcome, spellings that are one token here."""
    lines = []
    for label in LABELS:
        words = (getattr(prompt.answers, label).strip(), label, label.upper(), label.capitalize())
        spellings = dict.fromkeys(
            lead + word
            for word in dict.fromkeys((*words, *(w.lower() for w in words), *(w.capitalize() for w in words)))
            for lead in ("", " ")
            if word
        )
        single = []
        for spelling in spellings:
            ids = {_continuation(vocabulary, context, spelling) for context in contexts}
            only = ids.pop()
            if not ids and only and len(only) == 1:
                single.append(f"{spelling!r} [{only[0]}]")
        if single:
            lines.append(f"one token for {label}: {', '.join(single)}")
    example = "prompt.answers.tie=\"' tie'\""
    lines.append(
        f"Choose among these ({example}), or set prompt.multi_token_answers=true"
        " to score answers of several tokens."
    )
    return lines
