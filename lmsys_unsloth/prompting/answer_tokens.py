"""Token ids of the answers in the answer slot, the position after the last token of the prompt.

Whether an answer is one token, and which, depends on the text before it: in Llama 3, ``"Tie"`` is one
token after a space and two tokens without it. So the ids are determined and checked in the template's own
context, before any weights are loaded: ``ids(text + answer) == ids(text) + [answer id]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from lmsys_unsloth.config.prompt_schema import PromptConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.prompting.tokenization import Vocabulary

AnswerIds = tuple[tuple[int, ...], ...]
"""Token ids of each answer, in :data:`~lmsys_unsloth.data.comparison.LABELS` order; "both bad", if the
template has it, is the fourth."""

_FURTHER_WORDS = {"both_bad": ["neither", "Neither"]}
"""Words to propose for an answer besides its name."""


def find_answer_ids(vocabulary: Vocabulary, prompt: PromptConfig, contexts: Sequence[str]) -> AnswerIds:
    """Find the ids of the three or four answers, which must be the same after each of ``contexts``.

    Args:
        vocabulary: the tokenizer.
        prompt: the template.
        contexts: rendered prompts of different conversations, from the last special token on.

    Raises:
        UserError: an answer merges with the text before it, has several tokens (unless the template
            allows that), or equals or begins another; with the ids, and spellings that would work.
    """
    problems: list[str] = []
    found: dict[str, tuple[int, ...]] = {}
    for label, answer in prompt.answers.spellings().items():
        ids, *others = [_added_ids(vocabulary, context, answer) for context in contexts]
        if ids is None or any(other != ids for other in others):
            tail = contexts[0][-12:]
            before, whole = vocabulary.encode([contexts[0], contexts[0] + answer])
            problems.append(
                f"answers.{label} = {answer!r} merges with the text before it: {tail!r} ends in "
                f"{before[-3:].tolist()}, {tail + answer!r} in {whole[-3:].tolist()}"
            )
        elif len(ids) > 1 and not prompt.multi_token_answers:
            pieces = ", ".join(f"{vocabulary.decode([i])!r} {i}" for i in ids)
            problems.append(
                f"answers.{label} = {answer!r} is {len(ids)} tokens here ({pieces}), but must be one"
            )
        else:
            found[label] = ids
    problems += _ambiguities(prompt, found)
    if problems:
        title = f"prompt={prompt.name}: the answers don't fit this tokenizer:"
        raise UserError("\n  ".join([title, *problems, *_proposals(vocabulary, prompt, contexts)]))
    return tuple(found.values())


def _added_ids(vocabulary: Vocabulary, context: str, answer: str) -> tuple[int, ...] | None:
    """Ids that the answer adds to those of the context; None if it changes those of the context."""
    before, whole = (tuple(ids.tolist()) for ids in vocabulary.encode([context, context + answer]))
    return whole[len(before) :] if whole[: len(before)] == before and len(whole) > len(before) else None


def _ambiguities(prompt: PromptConfig, found: dict[str, tuple[int, ...]]) -> list[str]:
    """Pairs of answers whose ids are equal, or where the ids of one begin with those of the other."""
    problems = []
    for pair in combinations(found, 2):
        one, other = sorted(pair, key=lambda label: len(found[label]))
        if found[other][: len(found[one])] == found[one]:
            relation = "equals" if found[one] == found[other] else "begins"
            first, second = (
                f"answers.{label} = {getattr(prompt.answers, label)!r} {list(found[label])}"
                for label in (one, other)
            )
            problems.append(f"{first} {relation} {second}")
    return problems


def find_single_tokens(
    vocabulary: Vocabulary, prompt: PromptConfig, contexts: Sequence[str], further: bool = False
) -> dict[str, list[str]]:
    """For each answer, find which of its spellings are one token after each of ``contexts``.

    They are tried as they are, after a space and after a line break; with ``further``, in other cases and
    with the names of the outcome as well.

    Returns:
        Spellings with their ids, by the answer's name: ``{"a": ["'A' [32]", "' A' [362]"], ...}``.
    """
    result: dict[str, list[str]] = {}
    for label, spelling in prompt.answers.spellings().items():
        answer = spelling.strip(" \nĠ▁")
        words = [answer]
        if further:
            words += [label, label.upper(), label.capitalize(), answer.lower(), answer.capitalize()]
            words += _FURTHER_WORDS.get(label, [])
        result[label] = []
        for candidate in dict.fromkeys(lead + word for word in words if word for lead in ("", " ", "\n")):
            first, *others = {_added_ids(vocabulary, context, candidate) for context in contexts}
            if first and len(first) == 1 and not others:
                result[label].append(f"{candidate!r} [{first[0]}]")
    return result


def _proposals(vocabulary: Vocabulary, prompt: PromptConfig, contexts: Sequence[str]) -> list[str]:
    """For each outcome, spellings that are one token here."""
    single = find_single_tokens(vocabulary, prompt, contexts, further=True)
    lines = [f"one token for {label}: {', '.join(found)}" for label, found in single.items() if found]
    example = "prompt.answers.tie=\"' tie'\""
    lines.append(
        f"Choose among these ({example}), or set prompt.multi_token_answers=true"
        " to score answers of several tokens."
    )
    return lines
