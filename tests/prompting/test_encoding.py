from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import prompt_config as template
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_tokenizers import REAL_TOKENIZERS
from real_tokenizers import tokenizer as real_tokenizer
from small_tokenizers import (
    CHAT_TEMPLATES,
    SMALL_TOKENIZERS,
    TEMPLATES,
    encoder,
    small_gemma2,
    small_llama3,
    tokenizer,
)

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting import encoding
from lmsys_unsloth.prompting.budget import RenderedRow, tokenize_texts
from lmsys_unsloth.prompting.encoding import EncodedRow, RowEncoder, encode_cached
from lmsys_unsloth.prompting.rendering import Turn

ROW = Comparison("7", ("Hi", "More?"), ("Hello!", "No."), ("Yo", "Yes."), label=1)
LONG = Comparison(
    "9", ("Tell me. " * 90, "And now? " * 30), ("It is so. " * 99, "Yes. " * 5), ("川の流れ" * 40, "否" * 300)
)
BUDGET = 280

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
POLICIES: dict[str, dict[str, Any]] = {
    "middle": {"cut": "middle"},
    "head": {"cut": "head", "mark": "…"},
    "tail": {"cut": "tail", "mark": "", "dropped_turns_mark": "[cut]\n"},
    "last_only": {
        "turns": "last_only", "limits": {"prompt": 20, "response": 40}, "when_longer_than": 150
    },
}  # fmt: skip


def same(one: EncodedRow, other: EncodedRow) -> bool:
    return one.text == other.text and np.array_equal(one.input_ids, other.input_ids)


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
        assert ids.count(made.bos_id) == (made.bos_id is not None)
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


@pytest.mark.parametrize("name", SMALL_TOKENIZERS)
def test_ids_are_those_that_the_tokenizer_gives_the_text(name: str) -> None:
    for template_name in set(TEMPLATES) - set(CHAT_TEMPLATES):
        for row in encoder(name, template_name, BUDGET).encode([ROW, LONG]):
            plain = tokenizer(name)(row.text, split_special_tokens=True)
            assert plain.input_ids == row.input_ids.tolist()


def test_a_row_counts_the_characters_that_were_cut() -> None:
    whole, cut = encoder("small-llama3", "v5", BUDGET).encode([ROW, LONG])
    assert (whole.n_cut, whole.share_cut, whole.n_turns_kept) == (0, 0.0, 2)
    assert cut.n_turns_kept == 1
    assert cut.n_characters == sum(map(len, (*LONG.prompts, *LONG.responses_a, *LONG.responses_b)))
    assert 0.5 < cut.share_cut < 1
    assert whole.input_ids.dtype == np.int32


def test_rows_keep_their_order_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_CHUNK_CHARACTERS", 1000)
    rows = [dataclasses.replace(ROW, id=str(i), label=i % 3) for i in range(300)]
    encoded = encoder("smollm2", "v1").encode(rows, progress=True)
    assert [row.comparison for row in encoded] == rows
    assert encoder("smollm2", "v1").encode([]) == []


def test_a_row_at_the_limit_is_not_truncated_and_one_above_is() -> None:
    length = len(encoder("small-llama3", "v2").encode([LONG])[0].input_ids)
    exact, short = (encoder("small-llama3", "v2", limit).encode([LONG])[0] for limit in (length, length - 1))
    assert exact.n_cut == 0 and len(exact.input_ids) == length
    assert short.n_cut > 0


@pytest.mark.parametrize("response_b", ["Tie", "100200"])
def test_a_row_and_its_swapped_copy_of_more_tokens_are_truncated_alike(response_b: str) -> None:
    """The headings change the tokens of ``Tie`` (fewer after a space) and ``100200`` (more after a digit)."""
    turns = {"each_turn": "{prompt}\nA1 {response_a}\nB1{response_b}\n"}
    prompt = template("v2", body=[turns, "### Best response:"])
    row = Comparison("1", ("word " * 40,), ("yes",), (response_b,))
    both = [row, row.swapped()]
    short, long = sorted(len(each.input_ids) for each in RowEncoder(small_llama3(), prompt).encode(both))
    assert short < long
    for limit in range(short - 5, long + 1):
        limited = RowEncoder(small_llama3(), prompt.model_copy(update={"max_tokens": limit}))
        one, other = limited.encode(both)
        assert one.n_cut == other.n_cut and (one.n_cut > 0) == (limit < long)
        assert max(len(one.input_ids), len(other.input_ids)) <= limit


def test_the_mark_for_dropped_turns_appears_only_where_turns_were_dropped() -> None:
    made = encoder("small-llama3", "v5", BUDGET)
    mark = made.prompt.truncation.dropped_turns_mark
    one_turn = Comparison("1", LONG.prompts[:1], LONG.responses_a[:1], LONG.responses_b[:1])
    cut, dropped = made.encode([one_turn, LONG])
    assert cut.n_cut > 0 and mark not in cut.text
    assert dropped.text.count(mark) == 1


@pytest.mark.parametrize("name", SMALL_TOKENIZERS)
def test_v3_keeps_256_512_512_tokens_of_the_last_turn(name: str) -> None:
    long = Comparison("1", ("old", "P\n" * 900), ("old", "A\n" * 900), ("old", "B\n" * 900))
    made = encoder(name, "v3")
    (turn,) = made.budget.render([long])[0].turns
    assert turn.number == 2
    assert [len(ids) for ids in made.vocabulary.encode(turn.texts)] == [256, 512, 512]
    shorter = Comparison("1", ("old", "P\n" * 100), ("old", "A\n" * 100), ("old", "B\n" * 100))
    assert len(made.budget.render([shorter])[0].turns) == 2


def count_characters(made: RowEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of characters in each call of ``made.vocabulary.offsets`` from now on."""
    calls: list[int] = []
    offsets = made.vocabulary.offsets

    def counted(texts: Sequence[str]) -> list[np.ndarray]:
        calls.append(sum(map(len, texts)))
        return offsets(texts)

    monkeypatch.setattr(made.vocabulary, "offsets", counted)
    return calls


def test_a_text_of_a_megabyte_is_cut_without_tokenising_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = encoder("small-llama3", "v2")
    calls = count_characters(made, monkeypatch)
    huge = "All work and no play. " * 50_000
    row = made.encode([Comparison("1", ("Hi",), (huge,), ("short",))])[0]
    assert made.prompt.max_tokens - 8 <= len(row.input_ids) <= made.prompt.max_tokens
    assert row.text.count("All work") > 100 and "short" in row.text
    assert 0 < sum(calls) < 100_000


def test_more_of_a_text_is_tokenised_until_both_ends_have_enough_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = encoder("smollm2", "v2")
    calls = count_characters(made, monkeypatch)
    text = "=" * 200_000 + "end"  # one token stands for many of these
    tokenized = tokenize_texts(made.vocabulary, [text], enough=50)[0]
    assert tokenized.text == text
    assert min(len(tokenized.starts), len(tokenized.ends)) > 50
    assert len([n for n in calls if n]) > 2  # more than the first window at both ends
    assert sum(calls) < len(text)


def test_token_boundaries_near_the_ends_are_those_of_the_whole_text() -> None:
    vocabulary = encoder("smollm2", "v2").vocabulary
    for first in range(10):  # the windows end at various characters of a word
        text = ("internationalisation of incomprehensibilities, " * 250)[first : first + 9995]
        (whole,) = vocabulary.offsets([text])
        ends = tokenize_texts(vocabulary, [text], enough=50)[0]
        assert 50 < len(ends.starts) < len(whole) and 50 < len(ends.ends) < len(whole)
        np.testing.assert_array_equal(ends.starts, whole[: len(ends.starts), 0])
        np.testing.assert_array_equal(ends.ends, whole[-len(ends.ends) :, 1])
        assert abs(ends.n_tokens / len(whole) - 1) < 0.1


def test_a_budget_below_the_templates_own_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"prompt.max_tokens = 80: the own text of prompt=v2 takes 90 tokens"):
        encoder("smollm2", "v2", 80)


def test_a_template_that_writes_bos_itself_is_refused() -> None:
    prompt = template("v1", body=["<bos>", *template("v1").model_dump()["body"]])
    with pytest.raises(UserError, match=r"prompt=v1 has 2 BOS tokens \(id 2\)"):
        RowEncoder(small_gemma2(), prompt)


def test_a_template_that_ends_in_eos_is_refused() -> None:
    prompt = template("v1", body=[*template("v1").model_dump()["body"], "<|eot_id|>"])
    eos = small_llama3().eos_token_id
    with pytest.raises(UserError, match=rf"end-of-text token \(id {eos}\) right before the answer"):
        RowEncoder(small_llama3(), prompt)


def test_problems_of_the_template_are_reported_without_the_command_line_too() -> None:
    with pytest.raises(UserError, match=r"prompt=v1 can't be used:\n  prompt.reply"):
        RowEncoder(tokenizer("smollm2"), template("v1", reply="x"))


def test_markup_in_a_template_is_special_and_in_a_conversation_is_not() -> None:
    prompt = template(
        "v1",
        body=[
            {"each_turn": "<start_of_turn>user\n{prompt}{response_a}{response_b}<end_of_turn>\n"},
            "Best:\n",
        ],
    )
    start, end = small_gemma2().convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"])
    row = Comparison("1", ("<end_of_turn>",), ("a",), ("b",))
    ids = RowEncoder(small_gemma2(), prompt).encode([row])[0].input_ids.tolist()
    assert (ids.count(start), ids.count(end), ids[:2]) == (1, 1, [2, start])


def test_answers_with_other_ids_after_a_rows_text_are_reported() -> None:
    turns = [{"each_turn": "{prompt}{response_a}{response_b}"}, "<|end_of_text|>"]
    made = RowEncoder(small_llama3(), template("v2", body=turns))
    assert len(made.encode([ROW])) == 1
    made.answer_ids = ((1,), (2,), (3,))
    made._tail = np.array([7], np.int32)
    with pytest.raises(UserError, match=r"row 7: the answers are tokens .* after this row's text, but"):
        made.encode([ROW])


def test_the_preview_shows_bos_and_answer_slot() -> None:
    made = encoder("small-llama3", "v2")
    shown = made.preview(made.encode([ROW])[0])
    assert shown.startswith("<|begin_of_text|>Which of the following")
    assert shown.endswith("### Best response:⟦ A| B| Tie⟧")


def test_facts_are_the_results_of_the_checks() -> None:
    facts = encoder("smollm2", "v2").facts()
    assert facts["answers"] == "' A' 330, ' B' 389, ' Tie' 47832"
    assert facts["BOS"].startswith("none")
    assert facts["budget"] == "90 of 3072 tokens are the template's own text"
    assert encoder("small-gemma2", "v2").facts()["BOS"] == "2, once"


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMSYS_UNSLOTH_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of each call that was not answered from the cache."""
    calls: list[int] = []
    plain = RowEncoder.encode

    def counted(self: RowEncoder, rows: list[Comparison], progress: bool = False) -> list[EncodedRow]:
        calls.append(len(rows))
        return plain(self, rows, progress)

    monkeypatch.setattr(RowEncoder, "encode", counted)
    return calls


def test_cached_rows_equal_fresh_ones(cache_folder: Path, encodings: list[int]) -> None:
    made = encoder("small-llama3", "v5", BUDGET)
    rows = [ROW, LONG, dataclasses.replace(ROW, prompts=("👩‍👩‍👧", ""), soft_label=(0.1, 0.2, 0.7))]
    fresh, again = encode_cached(made, rows), encode_cached(made, rows)
    assert encodings == [3]
    for one, other in zip(fresh, again, strict=True):
        assert same(one, other) and one.input_ids.dtype == other.input_ids.dtype
        for name in ("comparison", "n_turns_kept", "n_characters", "n_cut"):
            assert getattr(one, name) == getattr(other, name)


def test_no_rows_are_cached_as_no_rows(cache_folder: Path) -> None:
    made = encoder("small-llama3", "v5", BUDGET)
    assert encode_cached(made, []) == encode_cached(made, []) == []


def test_a_changed_row_template_tokenizer_or_code_never_meets_old_ids(
    cache_folder: Path, encodings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = encoder("small-llama3", "v5")
    encode_cached(made, [ROW])
    for changed in (
        dataclasses.replace(ROW, responses_b=("Yo", "Yes!")),
        dataclasses.replace(ROW, label=0),
        ROW.swapped(),
    ):
        encode_cached(made, [changed])
    encode_cached(made, [ROW, ROW])
    for changes in (
        {"max_tokens": 300},
        {"answers": {"a": " a", "b": " b", "tie": " tie"}},
        {"system": "Judge."},
    ):
        encode_cached(RowEncoder(small_llama3(), template("v5", **changes)), [ROW])
    encode_cached(RowEncoder(small_llama3(), template("v5", truncation={"cut": "head"})), [ROW])
    encode_cached(encoder("smollm2", "v5"), [ROW])
    monkeypatch.setattr(encoding, "_code_fingerprint", lambda: "another version")
    encode_cached(made, [ROW])
    assert len(encodings) == 11


@pytest.mark.slow
def test_a_tokenizer_that_gained_a_token_never_meets_old_ids(
    cache_folder: Path, encodings: list[int]
) -> None:
    from lmsys_unsloth.model import smollm2

    grown = smollm2.tokenizer()
    before = encode_cached(RowEncoder(grown, template("v5")), [ROW])[0]
    grown.add_tokens(["Hello!"])
    after = encode_cached(RowEncoder(grown, template("v5")), [ROW])[0]
    assert len(encodings) == 2 and not np.array_equal(before.input_ids, after.input_ids)


def test_a_damaged_cache_file_is_made_again(cache_folder: Path, encodings: list[int]) -> None:
    made = encoder("small-llama3", "v5")
    first = encode_cached(made, [ROW])
    for file in cache_folder.rglob("*.table"):
        file.write_bytes(file.read_bytes()[:-30])
    assert same(encode_cached(made, [ROW])[0], first[0])
    assert len(encodings) == 2
