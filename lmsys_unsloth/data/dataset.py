"""Rows of one fold from a configuration, with a description of their source and of what was left out."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.config.schema import DataConfig, DebugConfig
from lmsys_unsloth.core import cache
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data import comparison, duplicates, folds, leaks, row_cache, sources
from lmsys_unsloth.data.arena import simulate
from lmsys_unsloth.data.comparison import Comparison, rows_fingerprint
from lmsys_unsloth.data.duplicates import Similar
from lmsys_unsloth.data.folds import (
    Folds,
    balance,
    folds_fingerprint,
    group_rows,
    grouping_columns,
    load_folds,
    make_folds,
    save_folds,
)
from lmsys_unsloth.data.sources import Rows
from lmsys_unsloth.data.stored_rows import select

log = logging.getLogger(__name__)

LEAST_ROWS = 4000
"""Minimum number of rows whose groups and folds are cached; fewer are grouped faster than loaded."""


@dataclass(frozen=True, slots=True)
class FoldData:
    """Training and validation rows of one fold."""

    train: Sequence[Comparison]
    """Rows of the other folds in file order, then extra rows. Not yet swapped, see ``swap_rows``."""
    validation: Sequence[Comparison]
    """Rows of this fold in file order."""
    groups: NDArray[np.int64]
    """``[validation]``: rows of one group share a number and are resampled together."""
    description: dict[str, Any]
    """Content of ``data.json``."""


def limit_rows(fold: FoldData, debug: DebugConfig, seed: int) -> FoldData:
    """Reduce a fold to the rows that the ``debug`` settings ask for, without changing the split."""

    def chosen(count: int, wanted: int | None) -> NDArray[np.int64]:
        if wanted is None or wanted >= count:
            return np.arange(count)
        return np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False))

    train = select(fold.train, chosen(len(fold.train), debug.train_rows))
    if debug.evaluate_on_train:
        return FoldData(train, train, np.arange(len(train)), fold.description)
    kept = chosen(len(fold.validation), debug.validation_rows)
    return FoldData(train, select(fold.validation, kept), fold.groups[kept], fold.description)


def load_rows(config: DataConfig, run: Run | None = None) -> Sequence[Comparison]:
    """Load all rows of ``config.path`` (or of the simulated arena) in file order, labelled or not.

    Raises:
        UserError: the source is unusable, or has bad rows and ``bad_rows`` is ``error``.
    """
    return _read_all(config, [config.path], run)[0].rows


def load_fold(config: DataConfig, fold: int, run: Run | None = None) -> FoldData:
    """Load the training and validation rows of one fold.

    Writes ``folds.csv`` (every row's fold), ``data.json`` and, when rows were skipped,
    ``bad_rows.csv`` into ``run``.

    Raises:
        UserError: as for :func:`load_rows`; rows without labels, a fold that does not exist, an
            empty fold, an unknown column in ``group_by``, too few groups, saved folds that do not fit.
    """
    if not 0 <= fold < config.folds:
        raise UserError(
            f"fold = {fold}: data.folds = {config.folds}, so the folds are 0 to {config.folds - 1}"
        )
    main, *extras = _read_all(config, [config.path, *config.extra], run)
    # a teacher may label extra rows, see lmsys_unsloth.data.earlier_runs
    for source in (main, *extras) if isinstance(config.soft_labels, bool) else (main,):
        _require_labels(source)
    content = rows_fingerprint(main.rows)
    columns = grouping_columns(main.rows, config.group_by)
    groups = group_by_prompt(main.rows, config, content)
    folds = _folds(main.rows, groups, content, config, ", ".join(["prompt", *columns]))
    _warn_of_large_groups(folds)
    inside = folds.of_row == fold
    validation, train = select(main.rows, inside), select(main.rows, ~inside)
    _require_rows(train, validation, fold)
    admitted, extra_report = leaks.admit_extra(extras, train, validation, config.near_duplicate, columns)
    train = [*train, *admitted] if admitted else train
    bad = [row for source in (main, *extras) for row in source.bad]
    description = {
        "source": _describe_source(main, config),
        "fingerprint": content,
        "folds": _describe_folds(main.rows, folds, fold, config) | {"grouped_by": ["prompt", *columns]},
        "train": {"rows": len(train), "labels": balance(train)},
        "validation": {"rows": len(validation), "labels": balance(validation)},
        "extra": extra_report,
        "bad_rows": {"policy": config.bad_rows, "rows": len(bad), "by_reason": sources.count_reasons(bad)},
        "leak": _leak_report(main.rows, content, inside, groups, admitted, config.near_duplicate),
    }
    if run is not None:
        save_folds(run.folds, main.rows, folds)
        write_json(run.data, description)
    return FoldData(train, validation, folds.groups[inside], description)


def group_by_prompt(rows: Sequence[Comparison], config: DataConfig, content: str) -> NDArray[np.int64]:
    """Group ``[rows]`` with similar prompts or equal values in ``config.group_by``; they share a fold.

    ``content`` is their :func:`~lmsys_unsloth.data.comparison.rows_fingerprint`.
    """
    prompts = _similar("prompts", rows, content, config.near_duplicate)
    return group_rows(rows, prompts.near, grouping_columns(rows, config.group_by))


def _read_all(config: DataConfig, paths: Sequence[str | None], run: Run | None) -> list[Rows]:
    """Read every source, then report or save all their bad rows together."""
    read = [
        Rows("simulated", "simulated", simulate(config.rows, config.seed, config.length))
        if path is None
        else row_cache.read_source_cached(
            path, layout=config.layout, split=config.split, soft_labels=config.soft_labels is not False
        )
        for path in paths
    ]
    bad = [row for source in read for row in source.bad]
    if bad and config.bad_rows == "error":
        total = sum(len(source.rows) + len(source.bad) for source in read)
        raise UserError(
            f"{sources.describe_bad_rows(bad, total)}\n"
            "  Fix them, or leave them out with data.bad_rows=skip (RUN/bad_rows.csv then lists all)."
        )
    if bad and run is not None:
        sources.save_bad_rows(run.bad_rows, bad)
    for source in read:
        if not source.rows:
            raise UserError(
                f"{sources.describe_bad_rows(source.bad, len(source.bad))}\n  No usable row is left."
            )
    return read


def _require_labels(source: Rows) -> None:
    missing = sum(row.label is None for row in source.rows)
    if missing:
        raise UserError(
            f"{source.source}: {missing:,} of {len(source.rows):,} rows have no label, so nothing can be "
            "trained or scored on them.\n  Training needs the columns winner_model_a, winner_model_b, "
            "winner_tie (or winner); prediction with eval.py run=RUN does not."
        )


def _require_rows(train: Sequence[Comparison], validation: Sequence[Comparison], fold: int) -> None:
    if not validation:
        raise UserError(f"fold = {fold}: no row is in this fold; choose another, or another data.fold_file")
    if not train:
        raise UserError(f"fold = {fold}: all rows are in this fold, none is left to train on; give more rows")


def _warn_of_large_groups(folds: Folds) -> None:
    """Warn of a group that is larger than a fold."""
    largest, rows = int(np.unique(folds.groups, return_counts=True)[1].max()), len(folds.groups)
    if largest * folds.count > rows:
        log.warning(
            "%d of %d rows form one group and share a fold, so folds are uneven; "
            "data.near_duplicate=0.9 or 1, or fewer columns in data.group_by, make smaller groups",
            largest,
            rows,
        )


TEXTS: dict[str, Callable[[Comparison], list[str]]] = {
    "prompts": lambda row: [row.prompt_text],
    "answers": leaks.answer_texts,
}


def _similar(
    what: Literal["prompts", "answers"], rows: Sequence[Comparison], content: str, threshold: float
) -> Similar:
    """Partitions of the rows' texts; those of many rows are kept in the cache."""
    key = {
        "what": f"similar {what}",
        "rows": content,
        "threshold": threshold,
        "code": cache.code_fingerprint(comparison, duplicates, leaks),
        "datasketch": importlib.metadata.version("datasketch"),
    }

    def make() -> pa.Table:
        texts = (text for row in duplicates.with_progress(rows, what) for text in TEXTS[what](row))
        similar = duplicates.find_similar(texts, threshold)
        return pa.table({"exact": similar.exact, "near": similar.near})

    table = cache.remember(key, make, keep=len(rows) >= LEAST_ROWS)
    return Similar(table["exact"].to_numpy(), table["near"].to_numpy())


def _folds(
    rows: Sequence[Comparison],
    groups: NDArray[np.int64],
    content: str,
    config: DataConfig,
    grouped_by: str,
) -> Folds:
    if config.fold_file is not None:
        return load_folds(Path(config.fold_file).expanduser(), rows, groups, config.folds)
    key = {
        "what": "folds",
        "rows": content,
        "groups": hashlib.sha256(groups.tobytes()).hexdigest(),
        "count": config.folds,
        "seed": config.fold_seed,
        "code": cache.code_fingerprint(folds),
        "scikit-learn": importlib.metadata.version("scikit-learn"),
    }

    def make() -> pa.Table:
        made = make_folds(rows, groups, config.folds, config.fold_seed, grouped_by)
        return pa.table({"of_row": made.of_row})

    table = cache.remember(key, make, keep=len(rows) >= LEAST_ROWS)
    return Folds(table["of_row"].to_numpy(), groups, config.folds)


def _leak_report(
    rows: Sequence[Comparison],
    content: str,
    held_out: NDArray[np.bool_],
    groups: NDArray[np.int64],
    admitted: Sequence[Comparison],
    threshold: float,
) -> dict[str, Any]:
    """Leak report of these rows and the extra rows that were admitted to training."""
    if admitted:
        rows = [*rows, *admitted]
        content = rows_fingerprint(rows)
        held_out = np.r_[held_out, np.zeros(len(admitted), dtype=np.bool_)]
        groups = np.r_[groups, np.full(len(admitted), -1)]  # admitted rows share no validation row's group
    prompts = _similar("prompts", rows, content, threshold)
    answers = _similar("answers", rows, content, threshold)
    return leaks.leak_report(rows, held_out, prompts, answers, groups)


def _describe_source(main: Rows, config: DataConfig) -> dict[str, Any]:
    rows = main.rows
    described: dict[str, Any] = {
        "path": main.source,
        "layout": main.layout,
        "rows": len(rows),
        "labels": balance(rows),
        "soft_labels": sum(row.soft_label is not None for row in rows),
        "multi_turn": sum(len(row.prompts) > 1 for row in rows),
        "identical_answers": sum(row.responses_a == row.responses_b for row in rows),
        "repaired": dict(main.notes),
    }
    if config.path is None:
        described |= {"length": config.length, "seed": config.seed}
    return described


def _describe_folds(
    rows: Sequence[Comparison], folds: Folds, fold: int, config: DataConfig
) -> dict[str, Any]:
    _, sizes = np.unique(folds.groups, return_counts=True)
    return {
        "fold": fold,
        "count": folds.count,
        "seed": config.fold_seed if config.fold_file is None else None,
        "reused": config.fold_file,
        "file": "folds.csv",
        "fingerprint": folds_fingerprint(rows, folds.of_row),
        "sizes": np.bincount(folds.of_row, minlength=folds.count).tolist(),
        "groups": len(sizes),
        "largest_group": int(sizes.max()),
    }
