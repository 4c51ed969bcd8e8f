"""A profile in words: the table in the terminal, and the findings that a reader must not overlook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from lmsys_unsloth.data import sources
from lmsys_unsloth.data_tools.profile import Profile
from lmsys_unsloth.report.finding import Finding

SHOWN_LANGUAGES = 8
SHOWN_EXAMPLES = 3
"""Odd rows of each kind that are named in the terminal."""

FEW_ROWS = 1000
"""Number of rows below which a fine-tuned model did not beat a regression on the form of the responses
(docs/study.md)."""


def facts(profile: Profile) -> Iterator[tuple[str, str]]:
    """Name and value of everything that fits into one line."""
    yield "layout", profile.layout
    yield "rows", f"{profile.rows:,}" + (f", and {len(profile.bad):,} bad ones" if profile.bad else "")
    yield "outcomes", ", ".join(f"{name} {_part(n, profile.rows)}" for name, n in profile.labels.items())
    if profile.both_bad:
        yield "ties that say both are bad", f"{profile.both_bad:,}"
    if profile.soft_labels:
        yield "rows with soft labels", f"{profile.soft_labels:,}"
    yield "turns", ", ".join(f"{n} × {turns}" for turns, n in group_turns(profile.turns).items())
    for name, values in profile.lengths.items():
        p5, p50, p95, most = np.percentile(values, [5, 50, 95, 100])
        yield f"characters, {name}", f"5% {p5:,.0f}, median {p50:,.0f}, 95% {p95:,.0f}, max {most:,.0f}"
    yield (
        "tokens",
        f"about {profile.tokens / 1e6:,.1f} million (4 characters each; debug=preview counts)",
    )
    yield "languages of the prompts", _languages(profile)
    if profile.models:
        yield "models", f"{len(profile.models)}, most often {profile.models[0].name}"
    if profile.first_wins:
        yield "A wins, if one wins", str(profile.first_wins)
    if profile.longer_wins:
        yield "the clearly longer one wins", str(profile.longer_wins)
    if profile.columns:
        yield "further columns", ", ".join(profile.columns)
    if profile.fold:
        folds = profile.fold["folds"]
        yield "folds", f"{' '.join(f'{size:,}' for size in folds['sizes'])} rows (seed {folds['seed']})"
        groups = f"{folds['groups']:,}, the largest of {folds['largest_group']:,} rows"
        yield f"groups by {', '.join(folds['grouped_by'])}", groups
        answers = profile.fold["leak"]["answers"]
        yield "responses of fold 0 also in training", f"{answers['near']:,} rows"
    for name, count in profile.repaired.items():
        yield f"cells repaired: {name.replace('_', ' ')}", f"{count:,}"


def findings(profile: Profile) -> Iterator[Finding]:
    """Statements about the file, those that need attention first."""
    if profile.bad:
        reasons = ", ".join(f"{n:,} × {reason}" for reason, n in sources.count_reasons(profile.bad).items())
        yield Finding(
            f"{len(profile.bad):,} rows can't be used: {reasons}.", "bad",
            "Repair these rows, or train with data.bad_rows=skip, which leaves them out and lists them.",
        )  # fmt: skip
    if profile.no_fold:
        yield Finding(f"{profile.no_fold}.", "bad" if "unlabelled" not in profile.labels else "plain")
    if profile.fold:
        leak = profile.fold["leak"]
        verdict = leak["verdict"]
        yield Finding(f"{verdict[0].upper()}{verdict[1:]}.", "bad" if verdict.startswith("LEAK") else "good")
        for warning in leak["warnings"]:
            yield Finding(f"{warning[0].upper()}{warning[1:]}.", "bad")
    if profile.overlap:
        yield _overlap(profile)
    contradictions = profile.odd_counts.get("repeated with another outcome", 0)
    if contradictions:
        yield Finding(
            f"{contradictions:,} rows repeat a comparison with another outcome: people disagree.",
            suggestion="Merge repetitions into votes_a, votes_b, votes_tie, which become soft labels.",
        )
    if profile.fold and profile.rows < FEW_ROWS:
        yield Finding(
            f"{profile.rows:,} rows are few: with about a thousand, fine-tuning mostly did no better than a "
            "logistic regression on the form of the responses (docs/study.md)."
        )
    if profile.first_wins and not _contains_half(profile.first_wins.interval):
        yield Finding(f"The order matters, or is not random: A wins {profile.first_wins}.")
    if profile.longer_wins and not _contains_half(profile.longer_wins.interval):
        yield Finding(f"Length matters: the clearly longer response wins {profile.longer_wins}.")


def print_profile(profile: Profile, console: Console | None = None) -> None:
    """Print facts, findings and examples of odd and bad rows."""
    console = console or Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts(profile):
        table.add_row(name, value)
    console.print(table, markup=False)
    for finding in findings(profile):
        mark = {"bad": "! ", "good": "✓ ", "plain": "- "}[finding.tone]
        suggestion = f" {finding.suggestion}" if finding.suggestion else ""
        console.print(f"{mark}{finding.text}{suggestion}", markup=False)
    for kind, count in profile.odd_counts.items():
        named = ", ".join(f"{row.id} ({row.detail})" for row in profile.odd[kind][:SHOWN_EXAMPLES])
        console.print(f"odd: {count:,} × {kind}: {named}{', …' * (count > SHOWN_EXAMPLES)}", markup=False)
    if profile.bad:
        console.print(sources.describe_bad_rows(profile.bad, profile.rows + len(profile.bad)), markup=False)


def _overlap(profile: Profile) -> Finding:
    overlap = profile.overlap
    assert overlap is not None
    text = (
        f"{overlap.same_prompt:,} of {profile.rows:,} rows have a prompt of {overlap.other} "
        f"({overlap.rows:,} rows), {overlap.same_comparison:,} the same comparison."
    )
    if not overlap.same_prompt:
        return Finding(text, "good")
    return Finding(text, "bad", "Scores on such rows are too optimistic after a training on the others.")


def _languages(profile: Profile) -> str:
    names = list(profile.languages.items())
    text = ", ".join(f"{name} {_part(count, profile.rows)}" for name, count in names[:SHOWN_LANGUAGES])
    others = sum(count for _, count in names[SHOWN_LANGUAGES:])
    return f"{text}, others {_part(others, profile.rows)}" if others else text


def group_turns(turns: dict[int, int], most: int = 4) -> dict[str, int]:
    """Rows by number of turns; those with ``most`` or more together.

    >>> group_turns({1: 5, 2: 1, 9: 2})
    {'1 turn': 5, '2 turns': 1, '4 or more': 2}
    """
    grouped: dict[str, int] = {}
    for count, rows in turns.items():
        name = f"{most} or more" if count >= most else f"{count} turn{'s' * (count > 1)}"
        grouped[name] = grouped.get(name, 0) + rows
    return grouped


def _part(count: int, rows: int) -> str:
    return f"{count:,} ({count / rows:.1%})"


def _contains_half(interval: Sequence[float]) -> bool:
    return interval[0] <= 0.5 <= interval[1]
