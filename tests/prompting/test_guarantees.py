"""What ``docs/prompts.md`` guarantees holds for prompts of any text."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import tokenizer_kinds
from factories import prompt_config as template
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prompt_rows import BUDGET, same
from real_tokenizers import REAL_TOKENIZERS
from real_tokenizers import tokenizer as real_tokenizer
from small_tokenizers import CHAT_TEMPLATES, SMALL_TOKENIZERS, TEMPLATES, tokenizer

from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting.budget import RenderedRow
from lmsys_unsloth.prompting.encoding import RowEncoder
from lmsys_unsloth.prompting.rendering import Turn

chunks = st.one_of(
    st.text(st.characters(codec=None), max_size=12),
    st.sampled_from(
        ["<|eot_id|>", "<end_of_turn>", "<|im_end|>", "<bos>", "### Answer\n", "{prompt}", "⟦", " […]"]
    ),
    st.sampled_from(["\n", " ", "word ", "字", "👩‍👩‍👧", "e\u0301", "=" * 9, "12345 ", "\r\n", "### ", '"']),
)
texts = st.lists(st.tuples(chunks, st.integers(1, 60)), max_size=4).map(
    lambda parts: "".join(text * count for text, count in parts)
)
conversations = st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4).map(
    lambda turns: Comparison("x", *(tuple(column) for column in zip(*turns, strict=True)))
)
rows_of_any_text = st.lists(conversations, min_size=1, max_size=4)
OTHER_KINDS = ("gpt2", "qwen3", "phi4", "llama2", "mistral")
POLICIES: dict[str, dict[str, Any]] = {
    "middle": {"cut": "middle"},
    "head": {"cut": "head", "mark": "…"},
    "tail": {"cut": "tail", "mark": "", "dropped_turns_mark": "[cut]\n"},
    "last_only": {
        "turns": "last_only", "limits": {"prompt": 20, "response": 40}, "when_longer_than": 150
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SMALL_TOKENIZERS)
@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(rows=rows_of_any_text, template_name=st.sampled_from(TEMPLATES))
def test_prompts_of_any_text_keep_every_guarantee(
    name: str, policy: str, rows: list[Comparison], template_name: str
) -> None:
    check_guarantees(_encoder(name, template_name, policy), rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER_KINDS)
@settings(deadline=None, max_examples=16, suppress_health_check=list(HealthCheck))
@given(
    rows=rows_of_any_text,
    template_name=st.sampled_from(TEMPLATES),
    policy=st.sampled_from(list(POLICIES)),
)
def test_prompts_keep_every_guarantee_with_other_kinds_of_tokenizers(
    kind: str, policy: str, rows: list[Comparison], template_name: str
) -> None:
    if tokenizer_kinds.tokenizer(kind).chat_template is None and template_name in CHAT_TEMPLATES:
        template_name = "v2"
    check_guarantees(_encoder(kind, template_name, policy), rows)


@pytest.mark.slow
@settings(deadline=None, max_examples=48, suppress_health_check=list(HealthCheck))
@given(
    rows=rows_of_any_text,
    name=st.sampled_from(REAL_TOKENIZERS),
    template_name=st.sampled_from(TEMPLATES),
    policy=st.sampled_from(list(POLICIES)),
)
def test_prompts_of_llama3_and_gemma2_keep_every_guarantee(
    name: str, policy: str, rows: list[Comparison], template_name: str, shared: Path
) -> None:
    check_guarantees(_encoder(name, template_name, policy, shared), rows)


@functools.cache
def _encoder(name: str, template_name: str, policy: str, shared: Path | None = None) -> RowEncoder:
    prompt = template(template_name, max_tokens=BUDGET, truncation=POLICIES[policy])
    if name in OTHER_KINDS:
        return RowEncoder(tokenizer_kinds.tokenizer(name), prompt)
    return RowEncoder(real_tokenizer(name, shared) if shared else tokenizer(name), prompt)


def check_guarantees(made: RowEncoder, rows: list[Comparison]) -> None:
    """Check what ``docs/prompts.md`` guarantees for prompts of any text."""
    encoded, swapped = made.encode(rows), made.encode([row.swapped() for row in rows])
    rendered = made.budget.render(rows)
    rendered_swapped = made.budget.render([row.swapped() for row in rows])
    fixed_texts = [item.strip() for item in made.prompt.body if isinstance(item, str)]
    one_turn = made.template.render([Turn(1, "x", "x", "x")])
    special = set(made.vocabulary.special_tokens.values())
    template_special = [i for i in made.budget.ids([one_turn])[0].tolist() if i in special]
    for position, (row, one) in enumerate(zip(rows, encoded, strict=True)):
        ids = one.input_ids.tolist()
        assert len(ids) <= BUDGET
        # the template's own text is never cut
        assert all(text in one.text for text in fixed_texts)
        assert one.text.endswith(one_turn[-1].text[-8:])
        # each answer adds exactly its own ids
        last = made.template.render(rendered[position].turns)[-1].text
        for answer, answer_id in zip(made.prompt.answers.spellings().values(), made.answer_ids, strict=True):
            before, after = made.vocabulary.encode([last, last + answer])
            assert after.tolist() == [*before.tolist(), *answer_id]
        # special tokens are those of the template, and there is one BOS
        assert [i for i in ids if i in special] == template_special
        assert all(ids.count(bos) == 1 for bos in made.vocabulary.bos.values())
        # swapping the responses swaps the texts in the prompt, and changes nothing else
        assert [turn.swapped() for turn in rendered[position].turns] == rendered_swapped[position].turns
        assert one.n_cut == swapped[position].n_cut
        # ids depend neither on the other rows nor on labels
        assert same(made.encode([dataclasses.replace(row, label=2, soft_label=(0.2, 0.3, 0.5))])[0], one)
        check_texts(made, row, rendered[position])


def check_texts(made: RowEncoder, row: Comparison, rendered: RenderedRow) -> None:
    """Check that texts in the prompt are those of the row, cut between characters, and counted."""
    mark, n_shown = made.prompt.truncation.mark, 0
    for turn in rendered.turns:
        for shown, texts in zip(turn.texts, (row.prompts, row.responses_a, row.responses_b), strict=True):
            original = made.vocabulary.clean(texts[turn.number - 1])
            assert _is_cut_of(shown, original, mark)
            n_shown += len(shown)
    n_marks = 3 * len(rendered.turns)
    assert 0 <= rendered.n_cut <= rendered.n_characters
    assert 0 <= n_shown - (rendered.n_characters - rendered.n_cut) <= n_marks * len(mark)


def _is_cut_of(shown: str, original: str, mark: str) -> bool:
    """Whether ``shown`` is the original, or a beginning of it, the mark, and an end of it."""
    if shown == original:
        return True
    splits = [i for i in range(len(shown) + 1) if shown.startswith(mark, i)]
    return any(original.startswith(shown[:i]) and original.endswith(shown[i + len(mark) :]) for i in splits)
