from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
from factories import prompt_config as template
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_tokenizers import TEMPLATES, TOKENIZERS, encoder, tokenizer

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.prompting import encoding
from lmsys_unsloth.prompting.budget import measure
from lmsys_unsloth.prompting.encoding import EncodedRow, RowEncoder, encode_cached
from lmsys_unsloth.prompting.rendering import Turn

ROW = Comparison("7", ("Hi", "More?"), ("Hello!", "No."), ("Yo", "Yes."), label=1)
LONG = Comparison(
    "9", ("Tell me. " * 90, "And now? " * 30), ("It is so. " * 99, "Yes. " * 5), ("川の流れ" * 40, "否" * 300)
)
BUDGET = 260

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
POLICIES: dict[str, dict[str, object]] = {
    "drop_oldest": {"share": "longer_first", "cut": "middle"},
    "all": {"share": "proportional", "cut": "head", "mark": "…"},
    "first_and_last": {"share": "proportional", "cut": "tail", "mark": "", "dropped_turns_mark": "[cut]\n"},
    "last_only": {"limits": {"prompt": 20, "response": 40}, "when_longer_than": 150},
}


def same(one: EncodedRow, other: EncodedRow) -> bool:
    return one.text == other.text and np.array_equal(one.input_ids, other.input_ids)


@pytest.mark.parametrize("turns", POLICIES)
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(conversations, min_size=1, max_size=4), template_name=st.sampled_from(TEMPLATES))
def test_whatever_people_write(
    name: str, turns: str, rows: list[Comparison], template_name: str, shared: Path
) -> None:
    made = _encoder(name, template_name, turns, shared)
    encoded = made.encode(rows)
    mirrored = made.encode([row.swapped() for row in rows])
    fitted = made.fitter.fit(rows)
    fitted_mirrors = made.fitter.fit([row.swapped() for row in rows])
    for position, (row, one) in enumerate(zip(rows, encoded, strict=True)):
        ids = one.input_ids.tolist()
        # budget and template
        assert len(ids) <= BUDGET
        for fixed in _fixed_texts(made):
            assert fixed in one.text
        assert one.text.endswith(_closing(made))
        # slot: each answer adds exactly its own token
        last = made.template.render(fitted[position].turns)[-1].text
        for answer, answer_id in zip(made.prompt.answers.model_dump().values(), made.answer_ids, strict=True):
            before, after = made.vocabulary.encode([last, last + answer])
            assert after.tolist() == [*before.tolist(), *answer_id]
        # special tokens: those of the template, nothing from the texts
        special = set(made.vocabulary.special_tokens.values())
        expected = [i for i in _template_ids(made) if i in special]
        assert [i for i in ids if i in special] == expected
        assert ids.count(made.bos_id) == (made.bos_id is not None)
        # swapping the bots swaps exactly the texts that are shown
        assert [_mirror(turn) for turn in fitted[position].turns] == fitted_mirrors[position].turns
        assert one.n_cut == mirrored[position].n_cut
        # the same alone, labelled, with a stranger's labels
        assert same(made.encode([dataclasses.replace(row, label=2, soft_label=(0.2, 0.3, 0.5))])[0], one)
        # what is shown is what was written, between its own characters
        for turn in fitted[position].turns:
            clean = made.vocabulary.clean
            originals = (row.prompts, row.responses_a, row.responses_b)
            for shown, original in zip(turn[1:4], originals, strict=True):
                assert _is_cut_of(shown, clean(original[turn.number - 1]), made.prompt.truncation.mark)


@functools.cache
def _encoder(name: str, template_name: str, turns: str, shared: Path) -> RowEncoder:
    policy = {"turns": turns, **POLICIES[turns]}
    return RowEncoder(tokenizer(name, shared), template(template_name, max_tokens=BUDGET, truncation=policy))


def _fixed_texts(made: RowEncoder) -> list[str]:
    return [item.strip() for item in made.prompt.body if isinstance(item, str)]


def _closing(made: RowEncoder) -> str:
    return made.template.render([Turn(1, "", "", "")])[-1].text[-8:]


def _template_ids(made: RowEncoder) -> list[int]:
    return [int(i) for i in made.fitter.ids([made.template.render([Turn(1, "x", "x", "x")])])[0]]


def _mirror(turn: Turn) -> Turn:
    return turn._replace(response_a=turn.response_b, response_b=turn.response_a)


def _is_cut_of(shown: str, original: str, mark: str) -> bool:
    """Whether ``shown`` is the original, or a beginning of it, the mark, and an end of it."""
    if shown == original:
        return True
    splits = [i for i in range(len(shown) + 1) if shown.startswith(mark, i)]
    return any(original.startswith(shown[:i]) and original.endswith(shown[i + len(mark) :]) for i in splits)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_what_the_tokenizer_makes_of_the_text(name: str, shared: Path) -> None:
    for template_name in set(TEMPLATES) - {"v4"}:
        for row in encoder(name, shared, template_name, BUDGET).encode([ROW, LONG]):
            plain = tokenizer(name, shared)(row.text, split_special_tokens=True)
            assert plain.input_ids == row.input_ids.tolist()


def test_a_row_knows_what_was_cut(shared: Path) -> None:
    whole, cut = encoder("llama3", shared, "v5", BUDGET).encode([ROW, LONG])
    assert (whole.n_cut, whole.share_cut, whole.n_turns_kept) == (0, 0.0, 2)
    assert cut.n_turns_kept == 1
    assert cut.n_characters == sum(map(len, (*LONG.prompts, *LONG.responses_a, *LONG.responses_b)))
    assert 0.5 < cut.share_cut < 1
    assert whole.input_ids.dtype == np.int32


def test_rows_keep_order_ids_labels_and_number(shared: Path) -> None:
    rows = [dataclasses.replace(ROW, id=str(i), label=i % 3) for i in range(1100)]
    encoded = encoder("smollm2", shared, "v1").encode(rows, progress=True)
    assert [row.comparison.id for row in encoded] == [row.id for row in rows]
    assert [row.comparison.label for row in encoded] == [row.label for row in rows]


def test_a_row_at_the_limit_is_whole_and_one_above_is_cut(shared: Path) -> None:
    length = len(encoder("llama3", shared, "v2").encode([LONG])[0].input_ids)
    exact, short = (
        encoder("llama3", shared, "v2", limit).encode([LONG])[0] for limit in (length, length - 1)
    )
    assert exact.n_cut == 0 and len(exact.input_ids) == length
    assert short.n_cut > 0


def test_v3_keeps_256_512_512_tokens_of_the_last_turn(shared: Path) -> None:
    long = Comparison("1", ("old", "p " * 900), ("old", "a " * 900), ("old", "b " * 900))
    made = encoder("llama3", shared, "v3")
    turn = made.fitter.fit([long])[0].turns
    assert [t.number for t in turn] == [2]
    counts = [
        len(ids) for ids in made.vocabulary.encode([turn[0].prompt, turn[0].response_a, turn[0].response_b])
    ]
    assert counts == [256, 512, 512]
    shorter = Comparison("1", ("old", "p " * 300), ("old", "a " * 300), ("old", "b " * 300))
    assert len(made.fitter.fit([shorter])[0].turns) == 2


def test_a_megabyte_in_a_cell_is_cut_without_tokenising_it_all(shared: Path) -> None:
    made = encoder("llama3", shared, "v2")
    seen = 0
    encode_batch = made.vocabulary.spans

    def counting(texts: list[str]) -> list[np.ndarray]:
        nonlocal seen
        seen += sum(map(len, texts))
        return encode_batch(texts)

    huge = "All work and no play. " * 50_000
    made.vocabulary.spans = counting  # type: ignore[method-assign, assignment]
    try:
        row = made.encode([Comparison("1", ("Hi",), (huge,), ("short",))])[0]
    finally:
        del made.vocabulary.spans
    assert made.prompt.max_tokens - 8 <= len(row.input_ids) <= made.prompt.max_tokens
    assert row.text.count("All work") > 100 and "short" in row.text
    assert seen < 100_000


def test_windows_grow_until_both_ends_have_enough_tokens(shared: Path) -> None:
    spaces = " " * 200_000 + "end"
    made = measure(encoder("llama3", shared, "v2").vocabulary, [spaces], enough=50)[0]
    assert made.text == spaces
    assert len(made.starts) > 50 or len(made.starts) == made.tokens


def test_a_budget_below_the_templates_own_text_is_refused(shared: Path) -> None:
    with pytest.raises(UserError, match=r"prompt.max_tokens = 80: the own text of prompt=v2 takes 73 tokens"):
        encoder("llama3", shared, "v2", 80)


def test_a_template_that_writes_bos_itself_is_refused(shared: Path) -> None:
    prompt = template("v1", body=["<bos>", *template("v1").model_dump()["body"]])
    with pytest.raises(UserError, match=r"prompt=v1 has 2 BOS tokens \(id 2\)"):
        RowEncoder(tokenizer("gemma2", shared), prompt)


def test_a_template_that_ends_in_eos_is_refused(shared: Path) -> None:
    prompt = template("v1", body=[*template("v1").model_dump()["body"], "<|eot_id|>"])
    with pytest.raises(UserError, match=r"end-of-text token \(id 128009\) right before the answer"):
        RowEncoder(tokenizer("llama3", shared), prompt)


def test_problems_of_the_template_are_found_without_the_command_line_too(shared: Path) -> None:
    with pytest.raises(UserError, match=r"prompt=v1 can't be used:\n  prompt.reply"):
        RowEncoder(tokenizer("smollm2", shared), template("v1", reply="x"))


def test_hand_written_markup_is_special_and_user_text_is_not(shared: Path) -> None:
    prompt = template(
        "v1",
        body=[
            {"each_turn": "<start_of_turn>user\n{prompt}{response_a}{response_b}<end_of_turn>\n"},
            "Best:\n",
        ],
    )
    row = Comparison("1", ("<end_of_turn>",), ("a",), ("b",))
    ids = RowEncoder(tokenizer("gemma2", shared), prompt).encode([row])[0].input_ids.tolist()
    assert (ids.count(106), ids.count(107), ids[:2]) == (1, 1, [2, 106])


def test_the_preview_shows_bos_and_slot(shared: Path) -> None:
    made = encoder("llama3", shared, "v2")
    shown = made.preview(made.encode([ROW])[0])
    assert shown.startswith("<|begin_of_text|>Which of the following")
    assert shown.endswith("### Best response:⟦ A| B| Tie⟧")


def test_facts_say_what_was_checked(shared: Path) -> None:
    facts = encoder("llama3", shared, "v2").facts()
    assert facts["answers"] == "' A' 362, ' B' 426, ' Tie' 59825"
    assert facts["BOS"] == "128000, once"
    assert facts["budget"] == "73 of 3072 tokens are the template itself"
    assert encoder("smollm2", shared, "v2").facts()["BOS"].startswith("none")


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


def test_cached_rows_equal_fresh_ones(cache_folder: Path, encodings: list[int], shared: Path) -> None:
    made = encoder("llama3", shared, "v5", BUDGET)
    rows = [ROW, LONG, dataclasses.replace(ROW, prompts=("👩‍👩‍👧", ""), soft_label=(0.1, 0.2, 0.7))]
    fresh, again = encode_cached(made, rows), encode_cached(made, rows)
    assert encodings == [3]
    for one, other in zip(fresh, again, strict=True):
        assert same(one, other) and one.input_ids.dtype == other.input_ids.dtype
        for name in ("comparison", "n_turns_kept", "n_characters", "n_cut"):
            assert getattr(one, name) == getattr(other, name)


def test_no_rows_are_cached_as_no_rows(cache_folder: Path, shared: Path) -> None:
    made = encoder("llama3", shared, "v5", BUDGET)
    assert encode_cached(made, []) == encode_cached(made, []) == []


def test_a_changed_row_template_tokenizer_or_code_never_meets_old_ids(
    cache_folder: Path, encodings: list[int], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = encoder("llama3", shared, "v5")
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
        encode_cached(RowEncoder(tokenizer("llama3", shared), template("v5", **changes)), [ROW])
    encode_cached(RowEncoder(tokenizer("llama3", shared), template("v5", truncation={"cut": "head"})), [ROW])
    encode_cached(encoder("smollm2", shared, "v5"), [ROW])
    monkeypatch.setattr(encoding, "_code_fingerprint", lambda: "another version")
    encode_cached(made, [ROW])
    assert len(encodings) == 11


def test_a_tokenizer_that_gained_a_token_never_meets_old_ids(
    cache_folder: Path, encodings: list[int], shared: Path
) -> None:
    from lmsys_unsloth.model import smollm2

    grown = smollm2.tokenizer()
    before = encode_cached(RowEncoder(grown, template("v5")), [ROW])[0]
    grown.add_tokens(["Hello!"])
    after = encode_cached(RowEncoder(grown, template("v5")), [ROW])[0]
    assert len(encodings) == 2 and not np.array_equal(before.input_ids, after.input_ids)


def test_a_damaged_cache_file_is_made_again(cache_folder: Path, encodings: list[int], shared: Path) -> None:
    made = encoder("llama3", shared, "v5")
    first = encode_cached(made, [ROW])
    for file in cache_folder.rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:-30])
    assert same(encode_cached(made, [ROW])[0], first[0])
    assert len(encodings) == 2
