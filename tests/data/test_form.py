"""Features of known texts; offsets are fair, symmetric, and the same after they were stored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.arena import simulate
from lmsys_unsloth.data.comparison import Comparison, label_array
from lmsys_unsloth.data.form.features import (
    COMPARED_CHARACTERS,
    FEATURES,
    MEASURES,
    form_features,
    swapped_features,
)
from lmsys_unsloth.data.form.offset import OFFSET_FILE, FormOffset, logit_scale
from lmsys_unsloth.data.form.regression import Regression, class_prior, fit_form


def row(a: str, b: str, label: int | None = 0, prompt: str = "Tell me about tea") -> Comparison:
    return Comparison("x", (prompt,), (a,), (b,), label)


def feature(name: str, comparison: Comparison) -> float:
    return float(form_features([comparison])[0, FEATURES.index(name)])


def test_features_of_known_texts():
    listed = row("# Tea\n- green\n* black\n1. white\n2) **old**\nend", "Tea")
    assert feature("list items", listed) == pytest.approx(np.log1p(4))
    assert feature("bold or headings", listed) == pytest.approx(np.log1p(3))
    assert feature("lines", listed) == pytest.approx(np.log1p(5))
    assert feature("code blocks", row("```py\nx\n```", "x")) == pytest.approx(np.log1p(2))
    assert feature("length", row("abc", "")) == pytest.approx(np.log1p(3))
    assert feature("similarity of the answers", row("one two three", "Three, four!")) == pytest.approx(1 / 4)
    assert feature("similarity to the prompt", row("tea me", "coffee")) == pytest.approx(2 / 4)
    assert feature("words of the prompt", row("tea me and you", "tell")) == pytest.approx(2 / 4 - 1 / 4)
    assert feature("distinct words", row("no no no yes", "no")) == pytest.approx(2 / 4 - 1)
    assert feature("distinct word triples", row("a b c a b c", "a b c")) == pytest.approx(3 / 4 - 1)
    assert feature("sentence length", row("One two. Three four! Five?", "")) == pytest.approx(np.log1p(5 / 3))
    assert feature("refusals", row("I'm SORRY, as an AI I can’t.", "")) == pytest.approx(np.log1p(3))
    assert feature("complete ending", row("Done. \n", "Not quite")) == 1
    assert feature("word length", row("tea coffee", "tea")) == pytest.approx(4.5 - 3)
    assert feature("other than ASCII", row("café", "tea")) == pytest.approx(1 / 4)
    assert feature("identical answers", row("same", "same")) == 1
    assert feature("distinct word triples", row("a b a c a", "")) == 1
    assert feature("sentence length", row("One two", "")) == pytest.approx(np.log(3))
    assert feature("other than ASCII", row("é", "\x7f")) == 1
    assert feature("words of the prompt", row("tea", "", prompt="tea")) == 1
    assert feature("similarity of the answers", row("", "")) == 1
    assert feature("length gap", row("", "abc")) == pytest.approx(np.log1p(3))
    assert feature("list gap", row("- a", "b")) == feature("code gap", row("```", "b")) == np.log(2)
    assert feature("turns", row("a", "b")) == pytest.approx(np.log(2))
    assert feature("prompt length", row("a", "b", prompt="abc")) == pytest.approx(np.log(4))
    assert feature("mean length", row("abc", "a")) == pytest.approx((np.log(4) + np.log(2)) / 2)


def test_words_beyond_the_compared_characters_do_not_count():
    long = "tea " * (COMPARED_CHARACTERS // 4)
    assert feature("distinct words", row(long + "green", long)) == 0
    assert feature("distinct words", row("x" * COMPARED_CHARACTERS + "y", "x" * COMPARED_CHARACTERS)) == 0
    assert feature("similarity of the answers", row("x" * COMPARED_CHARACTERS + "y", "x" * 2000)) == 1
    assert feature("length", row(long + "green", long)) > 0


def test_swapping_the_responses_negates_differences_and_keeps_the_others():
    comparison = row("- a long list\n- with ```code``` and **bold** tea", "short")
    first, second = form_features([comparison, comparison.swapped()])
    np.testing.assert_array_equal(swapped_features(first[None])[0], second)
    differences = len(MEASURES)
    np.testing.assert_array_equal(first[:differences], -second[:differences])
    np.testing.assert_array_equal(first[differences:], second[differences:])
    assert (first[:5] > 0).all()


@pytest.fixture(scope="module")
def longer_wins() -> list[Comparison]:
    """The longer response wins, mostly; two rows for each prompt."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(240):
        a, b = random.integers(1, 200, 2).tolist()
        label = 2 if random.random() < 0.2 else int(a < b)
        rows.append(row("word " * a, "word " * b, label, prompt=f"Prompt {number // 2}"))
    return rows


def test_the_regression_is_that_of_scikit_learn_on_bounded_inputs_in_both_orders():
    rows = simulate(300, 0, "short")
    train, new = rows[:200], rows[200:]
    both = form_features([*train, *(each.swapped() for each in train)])
    scaler = StandardScaler().fit(both)
    weight = np.where([name.startswith("mean ") for name in FEATURES], 0.4, 1.0)

    def inputs(features):
        return np.tanh(scaler.transform(features)) * weight

    labels = label_array([*train, *(each.swapped() for each in train)])
    model = LogisticRegression(C=0.1, max_iter=1000).fit(inputs(both), labels)
    found = fit_form(form_features(train), label_array(train))
    np.testing.assert_allclose(  # as far as the optimiser found the minimum
        found.predict_form(form_features(new)), model.predict_proba(inputs(form_features(new))), rtol=1e-3
    )
    assert found.prior[0] == found.prior[1] == pytest.approx((labels == 0).mean())


def test_unlabelled_rows_change_no_regression():
    rows = simulate(60, 0, "short")
    unlabelled = [dataclasses.replace(each, label=None) for each in simulate(20, 1, "short")]
    alone = fit_form(form_features(rows), label_array(rows))
    together = fit_form(form_features([*rows, *unlabelled]), label_array([*rows, *unlabelled]))
    assert alone == together


def test_an_input_that_is_the_same_in_all_rows_says_nothing_of_new_ones():
    rows = [row("word " * (1 + k % 7), "word " * (1 + k % 5), k % 3) for k in range(60)]
    fitted = fit_form(form_features(rows), label_array(rows))
    assert fitted.scale[FEATURES.index("refusals")] == 1
    assert np.array(fitted.coefficients)[:, FEATURES.index("refusals")] == pytest.approx([0, 0, 0])


def test_two_outcomes_are_predicted_by_one_logit():
    rows = [each for each in simulate(200, 0, "short") if each.label != 2]
    features, labels = form_features(rows), label_array(rows)
    found = fit_form(features, labels).predict_form(features)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found[:, 2] == pytest.approx(class_prior(labels)[2])
    assert (found[:, :2].argmax(axis=1) == labels).mean() > 0.6


def test_a_regression_of_an_earlier_version_uses_the_features_that_it_names():
    earlier = Regression(
        ("list gap", "length"), (0.0, 1.0), (1.0, 2.0), (0, 1, 2), ((1.0, 2.0), (0.0, 0.0), (0.0, 0.0)),
        (0.5, 0.0, 0.0), (0.4, 0.3, 0.3),
    )  # fmt: skip
    rows = [row("- a", "b"), row("a", "b")]
    gaps, lengths = np.array([[feature("list gap", each), feature("length", each)] for each in rows]).T
    logits = np.column_stack([gaps + 2 * (lengths - 1) / 2 + 0.5, np.zeros(2), np.zeros(2)])
    np.testing.assert_allclose(earlier.predict_form(form_features(rows)), softmax(logits, axis=1))
    with pytest.raises(ValueError, match="unknown inputs: rhymes"):
        dataclasses.replace(earlier, inputs=("list gap", "rhymes")).predict_form(form_features(rows))


def test_an_offset_is_the_log_probability_of_what_the_form_predicts(longer_wins: list[Comparison]) -> None:
    offset = FormOffset.fit(longer_wins[:200])
    found = softmax(offset.logits(longer_wins[200:]), axis=1)
    np.testing.assert_allclose(np.exp(offset.logits(longer_wins[200:])).sum(axis=1), 1)
    labels = np.array([each.label for each in longer_wins[200:]])
    assert -np.log(found[np.arange(40), labels]).mean() < 0.8  # 1.05 for the class prior


def test_swapping_the_responses_swaps_the_offset(longer_wins: list[Comparison]) -> None:
    offset, swapped = FormOffset.fit(longer_wins), [each.swapped() for each in longer_wins]
    for logits in (offset.logits, offset.held_out_logits):
        # As far as the optimiser found the minimum, which is symmetric.
        np.testing.assert_allclose(logits(swapped)[:, [1, 0, 2]], logits(longer_wins), atol=1e-3)


def test_no_label_reaches_the_offset_of_a_training_row_with_the_same_prompt(
    longer_wins: list[Comparison],
) -> None:
    first = longer_wins[0]
    changed = [
        dataclasses.replace(each, label=2) if each.prompts == first.prompts else each for each in longer_wins
    ]
    before, after = FormOffset.fit(longer_wins), FormOffset.fit(changed)
    same = [each for each in longer_wins if each.prompts == first.prompts]
    np.testing.assert_array_equal(before.held_out_logits(same), after.held_out_logits(same))
    assert not np.array_equal(before.held_out_logits(longer_wins), after.held_out_logits(longer_wins))
    assert not np.array_equal(before.logits(same), after.logits(same))


def test_a_stored_offset_is_the_same(longer_wins: list[Comparison], tmp_path: Path) -> None:
    offset = FormOffset.fit(longer_wins)
    offset.save(tmp_path)
    loaded = FormOffset.load(tmp_path)
    np.testing.assert_array_equal(loaded.logits(longer_wins), offset.logits(longer_wins))
    assert loaded.logit_scale == offset.logit_scale


def test_the_mean_of_offsets_has_the_means_of_what_they_predict(
    longer_wins: list[Comparison], tmp_path: Path
) -> None:
    each = [FormOffset.fit(longer_wins), FormOffset.fit(longer_wins[:100])]
    FormOffset.average(each).save(tmp_path)
    loaded = FormOffset.load(tmp_path)
    mean = np.mean([offset.logits(longer_wins) for offset in each], axis=0)
    np.testing.assert_allclose(loaded.logits(longer_wins), mean)
    assert loaded.logit_scale == pytest.approx((each[0].logit_scale + each[1].logit_scale) / 2)


def test_a_models_logits_count_more_the_more_rows_it_was_trained_on(longer_wins: list[Comparison]) -> None:
    assert [logit_scale(rows) for rows in (0, 600, 1800)] == [0, 0.5, 0.75]
    assert FormOffset.fit(longer_wins).logit_scale == logit_scale(240)
    assert FormOffset.fit(longer_wins, earlier_rows=360).logit_scale == 0.5


def test_an_offset_of_an_earlier_version_scales_no_logits(
    longer_wins: list[Comparison], tmp_path: Path
) -> None:
    offset = FormOffset.fit(longer_wins)
    write_json(tmp_path / OFFSET_FILE, [dataclasses.asdict(each) for each in offset.regressions])
    loaded = FormOffset.load(tmp_path)
    np.testing.assert_array_equal(loaded.logits(longer_wins), offset.logits(longer_wins))
    assert loaded.logit_scale == 1


@pytest.mark.parametrize(
    "content",
    [
        None, "", "{}", "[]", "[{}]", '[{"inputs": []}]', '{"logit_scale": 1, "regressions": []}',
        '{"logit_scale": 1, "regressions": [{}]}',
    ],
)  # fmt: skip
def test_a_damaged_or_missing_offset_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / OFFSET_FILE).write_text(content)
    with pytest.raises(UserError, match="json: can't be read"):
        FormOffset.load(tmp_path)


def test_an_offset_that_is_not_finite_is_refused(longer_wins: list[Comparison], tmp_path: Path) -> None:
    fitted = dataclasses.asdict(FormOffset.fit(longer_wins).regressions[0])
    for number in (float("nan"), float("inf")):
        text = json.dumps([{**fitted, "intercept": [number, 0.0, 0.0]}])
        (tmp_path / OFFSET_FILE).write_text(text)
        with np.errstate(invalid="ignore"), pytest.raises(UserError, match="not finite"):
            FormOffset.load(tmp_path)


@pytest.mark.parametrize("scale", [-0.1, 1.1, float("nan"), None, "x"])
def test_a_scale_that_is_no_share_is_refused(
    scale: object, longer_wins: list[Comparison], tmp_path: Path
) -> None:
    fitted = dataclasses.asdict(FormOffset.fit(longer_wins).regressions[0])
    (tmp_path / OFFSET_FILE).write_text(json.dumps({"logit_scale": scale, "regressions": [fitted]}))
    with pytest.raises(UserError, match=r"can't be read \(.*(logit_scale|float)"):
        FormOffset.load(tmp_path)


def test_rows_without_known_outcomes_give_equal_offsets() -> None:
    unlabelled = [row("a", "b", None), row("c", "d e f", None)]
    offset = FormOffset.fit(unlabelled)
    of_nothing = FormOffset.fit([]).logits(unlabelled)
    for found in (offset.logits(unlabelled), offset.held_out_logits(unlabelled), of_nothing):
        np.testing.assert_allclose(found, np.log(1 / 3))
    assert form_features([]).shape == (0, len(FEATURES))
