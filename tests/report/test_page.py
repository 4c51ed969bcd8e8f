"""The report: complete, self-contained, and nothing a user wrote becomes markup."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest
from rich.console import Console

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.data.selection import Overlap
from lmsys_unsloth.evaluate import adjustment, metrics
from lmsys_unsloth.evaluate.predictions import (
    BASELINE_COLUMNS,
    FORM_COLUMNS,
    Predictions,
    with_columns,
    with_swap,
)
from lmsys_unsloth.report import page, plots, score_table

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</div></section><style>body{display:none}</style>",
    "{{ 7*7 }} {% for x in y %}",
    "\u202egnissim\u202c \ud83d \x00 \u0645\u0631\u062d\u0628\u0627",
)
CURVE = [{"step": i, "loss": 1.1 - i / 100, "learning_rate": 1e-4} for i in range(30)]


def case(n: int = 40, *, label=lambda i: i % 3, text: str = "word"):
    random = np.random.default_rng(0)
    rows = [
        Comparison(
            f"{i}-{text}",
            (f"{text} {i}",),
            (text,),
            (f"{text} {text}",),
            label=label(i),
            model_a=text,
            model_b="m",
        )
        for i in range(n)
    ]
    labels = np.array([-1 if r.label is None else r.label for r in rows])
    p = random.dirichlet([2, 2, 2], n).astype(np.float32)
    return Predictions([r.id for r in rows], np.zeros(n, int), p, labels, {"share_cut": [0.0] * n}), rows


def with_baselines(predictions, probabilities):
    """Add the same probabilities as those of both regressions."""
    for names in (BASELINE_COLUMNS, FORM_COLUMNS):
        predictions = with_columns(predictions, names, probabilities)
    return predictions


def described(path, *, command="python train.py fold=0", config="seed: 0\n", env=None, curve=CURVE) -> Run:
    """A run directory with the files that the report shows."""
    run = Run(path)
    run.path.mkdir(parents=True, exist_ok=True)
    run.config.write_text(config)
    environment = {"packages": {"torch": "2"}, "gpus": []} if env is None else env
    run.environment.write_text(json.dumps({**environment, "command": command}))
    run.training.write_text(json.dumps({"learning_curve": curve}))
    return run


def write(tmp_path, predictions, rows, curve=CURVE, env=None, **known):
    run = described(tmp_path, env=env, curve=curve)
    page.write_report(run, metrics.score_predictions(predictions, **known), predictions, rows)
    return run.report.read_text(encoding="utf-8")


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes seconds; most of the page can be tested without."""
    monkeypatch.setattr(plots, "plot_all", lambda *_: {})


class Tags(HTMLParser):
    """All tags and all addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def parsed(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    return tags


def test_every_section_is_there(tmp_path):
    predictions, rows = case(60)
    both = with_swap(predictions, predictions.probabilities[:, [1, 0, 2]])
    html = write(tmp_path, with_baselines(both, predictions.probabilities), rows)
    assert re.findall("<h2>(.*?)</h2>", html) == [
        "Summary", "Log loss and baselines", "Calibration", "Distribution of the probabilities",
        "Confusion matrix and effect of the order", "Log loss by slice", "Learning curve",
        "The 20 rows with the highest loss", "How to reproduce this",
    ]  # fmt: skip
    assert "<summary>Configuration</summary>" in html and "<summary>Environment</summary>" in html
    assert "python train.py fold=0" in html and "seed: 0" in html and "torch 2" in html
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        *(f"{kind}_{name}.png" for kind in ("reliability", "histogram") for name in ("a", "b", "tie")),
        "confusion.png", "swap.png", "learning_curve.png",
    }  # fmt: skip
    assert html.count("<details") == 22
    assert not list(tmp_path.glob("**/.*"))


def test_self_contained_with_no_script(tmp_path):
    html = write(tmp_path, *case())
    page = parsed(html)
    assert "script" not in page.tags and "link" not in page.tags and not page.handlers
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert set(re.findall(r"https?://[^\s\"<']+", html)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip
    assert "default-src 'none'" in html and 'name="viewport"' in html and "prefers-color-scheme: dark" in html


def test_figures_take_their_colours_from_the_page(tmp_path):
    html = write(tmp_path, *case())
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--a)" in drawings and "var(--ink)" in drawings
    assert not re.search(r"#(?!m?[0-9a-f]{9,})[0-9a-f]{6}\b", drawings)
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(tmp_path, no_figures, text):
    predictions, rows = case(30, text=text)
    html = write(
        tmp_path, predictions, rows, env={"gpus": [text], "packages": {text: text}, "platform": text}
    )
    harmless = parsed(write(tmp_path / "harmless", *case(30, text="word")))
    page = parsed(html)
    assert page.tags == harmless.tags
    assert not page.handlers and all(address.startswith(("#", "data:")) for address in page.addresses)
    if "{{" in text:
        assert text in html
    assert html.count("<style>") == 1


def test_hostile_title_config_and_command(tmp_path, no_figures):
    predictions, rows = case()
    run = described(tmp_path / "<b>run", command=HOSTILE[1], config=HOSTILE[0], env={}, curve=[])
    page.write_report(run, metrics.score_predictions(predictions), predictions, rows)
    html = run.report.read_text(encoding="utf-8")
    assert "<script" not in html and "<img" not in html and "<b>run" not in html and "&lt;b&gt;run" in html


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "label"),
    [
        (20, lambda i: i % 3),
        (20, lambda i: i % 2),
        (1, lambda i: 2),
        (30, lambda i: None),
        (30, lambda i: i % 3 if i < 5 else None),
    ],
    ids=["few", "a class missing", "one row", "unlabelled", "partly labelled"],
)
def test_odd_amounts_of_data(tmp_path, n, label):
    predictions, rows = case(n, label=label)
    html = write(tmp_path, predictions, rows, curve=[{"step": 1, "loss": 1.0}])
    assert "nan" not in html.lower().replace("nano", "") and "None" not in html
    if label(29) is None and label(0) is None:
        assert "least certain rows" in html and "confusion" not in html


def test_no_rows_at_all(tmp_path):
    html = write(tmp_path, *case(0), curve=[])
    assert "nothing could be scored" in html


def test_text_of_some_rows_missing_leaves_those_sections_out(tmp_path, no_figures):
    predictions, rows = case(40)
    html = write(tmp_path, predictions, rows[1:])
    assert "highest loss" not in html and "by slice" not in html and "Summary" in html


def test_rows_may_come_in_any_order(tmp_path, no_figures):
    predictions, rows = case(40)
    assert write(tmp_path, predictions, rows[::-1]) == write(tmp_path, predictions, rows)


def test_rows_with_the_highest_loss_come_first_and_long_texts_are_cut():
    predictions, rows = case(40)
    rows[7] = Comparison(rows[7].id, ("q",) * 9, ("x" * 100_000,) * 9, ("y",) * 9, label=1)
    predictions.labels[7] = 1
    predictions.probabilities[7] = [0.9, 0.0001, 0.0999]
    shown = page.examples(predictions, rows)
    assert len(shown) == 20 and shown[0].id == rows[7].id
    assert shown[0].loss == pytest.approx(-np.log(0.0001), abs=1e-4)
    assert [e.loss for e in shown] == sorted((e.loss for e in shown), reverse=True)
    assert shown[0].turns_left_out == 3 and len(shown[0].turns[0][1]) < 3000
    assert "97,600 characters left out" in shown[0].turns[0][1]


def test_a_leak_in_the_data_description_is_the_first_finding(tmp_path, no_figures):
    (tmp_path / "data.json").write_text(json.dumps({"leak": {"verdict": "LEAK: 5 of 40 validation rows"}}))
    html = write(tmp_path, *case())
    assert re.findall('<p class="callout">(.*?)</p>', html)[0] == "LEAK: 5 of 40 validation rows"


def test_warnings_of_the_leak_report_are_findings(tmp_path, no_figures):
    leak = {"verdict": "no prompt is in both training and validation", "warnings": ["30 of 40 rows repeat"]}
    (tmp_path / "data.json").write_text(json.dumps({"leak": leak}))
    html = write(tmp_path, *case())
    assert "30 of 40 rows repeat" in html and "no prompt is in both" not in html


def test_a_small_early_stopping_set_is_a_finding(tmp_path, no_figures):
    for prompts, warned in ((29, True), (30, False)):
        run = described(tmp_path)
        run.training.write_text(json.dumps({"early_stopping_prompts": prompts}))
        predictions, rows = case()
        page.write_report(run, metrics.score_predictions(predictions), predictions, rows)
        html = run.report.read_text(encoding="utf-8")
        assert (f"early-stopping set of only {prompts} prompts" in html) is warned


def test_scored_training_rows_are_marked_in_the_title_the_summary_and_the_terminal(tmp_path, no_figures):
    predictions, rows = case()
    m = dataclasses.replace(metrics.score_predictions(predictions), trained_rows=Overlap(0, scored=12))
    run = described(tmp_path)
    run.data.write_text(json.dumps({"leak": {"verdict": "LEAK: 5 of 40 validation rows"}}))
    page.write_report(run, m, predictions, rows)
    html = run.report.read_text(encoding="utf-8")
    assert re.search('<h1 class="bad">log loss .*; 12 of the 40 scored rows were used to train', html)
    callouts = re.findall('<p class="callout">(.*?)</p>', html)
    assert callouts[0].startswith("12 of the 40 scored rows were used to train this model")
    assert callouts[1] == "LEAK: 5 of 40 validation rows"
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    page.print_summary(m, console)
    printed = " ".join(console.file.getvalue().split())
    assert re.match("log loss [^!]* class prior; 12 of the 40 scored rows were used to train", printed)
    assert "! 12 of the 40 scored rows" in printed
    assert "<h1>log loss" in write(tmp_path / "valid", predictions, rows)


@pytest.mark.parametrize("method", ["none", "temperature", "stack"])
def test_raw_calibrated_and_stacked_are_in_one_table_with_their_differences(tmp_path, no_figures, method):
    predictions, rows = case(60)
    regression = np.random.default_rng(1).dirichlet([2, 2, 2], 60)
    candidates = {"temperature": np.full((60, 3), 1 / 3), "stack": regression[::-1]}
    predictions = with_baselines(predictions, regression)
    compared = adjustment.compare(predictions, candidates)
    scored = metrics.score_predictions(predictions)
    run = described(tmp_path)
    page.write_report(
        run, dataclasses.replace(scored, adjusted=compared, adjustment=method), predictions, rows
    )
    (table,) = re.findall(
        "(?s)<h2>Log loss and baselines</h2>.*?(<table>.*?</table>)", run.report.read_text()
    )
    lines = re.findall("(?s)<tr( class=.own.)?><td>(.*?)</td>(.*?)</tr>", table)
    names = ["uniform", "class prior", "logistic regression", "regression on form"]
    names += ["raw", "calibrated", "stacked"]
    assert [name.removesuffix(" (this run)") for _, name, _ in lines] == names
    used = {"none": "raw", "temperature": "calibrated", "stack": "stacked"}[method]
    assert [name for own, name, _ in lines if own] == [f"{used} (this run)"]
    for (_, _, cells), own in zip(lines[4:], compared.values(), strict=True):
        assert f">{own.log_loss:.4f}<" in cells
        for pair in (own.against_logistic_regression, own.against_raw):
            assert f">{score_table.format_difference(pair)}<" in cells
    assert score_table.format_difference(compared["stack"].against_raw).count("(") == 1


def test_a_failing_report_leaves_the_old_one(tmp_path, no_figures, monkeypatch):
    (tmp_path / "report.html").write_text("old")
    predictions, rows = case()
    monkeypatch.setattr(page.findings, "headline", lambda _: jinja2.StrictUndefined(name="headline"))
    with pytest.raises(jinja2.UndefinedError):
        page.write_report(Run(tmp_path), metrics.score_predictions(predictions), predictions, rows)
    assert (tmp_path / "report.html").read_text() == "old"


def test_terminal_table_is_aligned_and_complete():
    predictions, _ = case(200)
    predictions = with_baselines(predictions, predictions.probabilities)
    m = metrics.score_predictions(predictions, true_probabilities=predictions.probabilities)
    candidates = {"temperature": np.full((200, 3), 1 / 3), "stack": np.full((200, 3), 1 / 3)}
    compared = adjustment.compare(predictions, candidates)
    m = dataclasses.replace(m, adjusted=compared)
    console = Console(file=io.StringIO(), width=90, force_terminal=False)
    page.print_summary(m, console)
    lines = console.file.getvalue().splitlines()
    assert "log loss" in lines[0] and "class prior" in lines[0]
    for name in (
        "uniform",
        "class prior",
        "logistic regression",
        "raw",
        "calibrated",
        "stacked",
        "best possible",
    ):
        assert any(line.strip().startswith(name) for line in lines), name
    assert [line.split()[0] for line in lines if "this run" in line] == ["raw"]
    assert sum("+0.0" in line or "−0.0" in line for line in lines) == 3  # from logistic regression
    columns = {match.end() for line in lines[3:] if (match := re.search(r"\b\d\.\d{4}\b", line))}
    assert len(columns) == 1
    empty = metrics.compute_metrics(np.empty((0, 3)), np.empty(0, dtype=int))
    page.print_summary(empty, console)
