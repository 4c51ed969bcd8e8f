"""From a configuration to encoded rows: everything that a command does before weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmsys_unsloth.cli import preflight, preview
from lmsys_unsloth.cli.machine.cost import describe_cost
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core import ranks
from lmsys_unsloth.data.dataset import limit_rows, load_fold
from lmsys_unsloth.data.earlier_runs import use_earlier_runs
from lmsys_unsloth.data.selection import Overlap, Selection, split_early_stopping
from lmsys_unsloth.data.stored_rows import ROWS_PER_UNIT, swap_rows
from lmsys_unsloth.data.trained_rows import save_trained_rows
from lmsys_unsloth.model import loading
from lmsys_unsloth.model.families.model_folder import model_settings
from lmsys_unsloth.model.unsloth_import import import_unsloth
from lmsys_unsloth.prompting.encoded_rows import encode_cached
from lmsys_unsloth.prompting.encoding import RowEncoder
from lmsys_unsloth.prompting.prepared import Prepared

log = logging.getLogger(__name__)


def prepare_training(config: Config, run: Run) -> Prepared:
    """Read, split and encode the rows of one fold; print what the run will see.

    Writes ``folds.csv``, ``data.json``, ``training_rows.csv`` and ``samples.json``. Of several ranks, the
    first one prepares before the others, which find most results in the cache folder.

    Raises:
        UserError: any problem that can be detected before weights are loaded.
    """
    return _in_turn(lambda: _prepare_training(config, run))


def _prepare_training(config: Config, run: Run) -> Prepared:
    loading.require_available(config.model)
    fold = limit_rows(load_fold(config.data, config.fold, run), config.debug, config.seed)
    fold = use_earlier_runs(config, fold, run)
    init_from = config.train.init_from
    save_trained_rows(
        run.training_rows, fold.train, Run(Path(init_from)).training_rows if init_from else None
    )
    rows, early_stopping = split_early_stopping(fold.train, config)
    encoder = RowEncoder(loading.load_tokenizer(config.model), config.prompt)
    train = encode_cached(encoder, swap_rows(rows, config.data.swap, config.seed), progress=True)
    views = swap_rows(early_stopping, "both" if config.head.kind == "davidson" else "none", config.seed)
    scored = encode_cached(encoder, fold.validation, progress=True)
    prepared = Prepared(
        encoder=encoder,
        scored=scored,
        folds=np.full(len(scored), config.fold),
        groups=fold.groups,
        train=train,
        unit_sizes=[ROWS_PER_UNIT[config.data.swap]] * len(rows),
        early_stopping=encode_cached(encoder, views, progress=True),
        baseline_rows=fold.train,
        overlap=Overlap(left_out=0, scored=len(scored)) if config.debug.evaluate_on_train else None,
    )
    preview.write_samples(run, prepared)
    preview.print_preview(fold.description, prepared, whole=config.debug.preview)
    _print_checks(config, prepared, weights=not config.debug.preview)
    return prepared


def prepare_scoring(config: Config, selection: Selection, output: Run) -> Prepared:
    """Encode the rows that were selected for scoring; print the checks and write ``samples.json``.

    Ranks take turns as in :func:`prepare_training`.

    Raises:
        UserError: any problem that can be detected before weights are loaded.
    """
    return _in_turn(lambda: _prepare_scoring(config, selection, output))


def _prepare_scoring(config: Config, selection: Selection, output: Run) -> Prepared:
    loading.require_available(config.model)
    encoder = RowEncoder(loading.load_tokenizer(config.model), config.prompt)
    scored = encode_cached(encoder, selection.rows, progress=True)
    prepared = Prepared(
        encoder=encoder,
        scored=scored,
        folds=selection.folds,
        groups=selection.groups,
        baseline_rows=selection.train,
        overlap=selection.overlap,
    )
    preview.write_samples(output, prepared)
    _print_checks(config, prepared, weights=True)
    return prepared


def _in_turn(prepare: Callable[[], Prepared]) -> Prepared:
    """Have the first rank prepare before the others, which meanwhile import what takes long."""
    if not ranks.current().first:
        import_unsloth()
    return ranks.current().run_first(prepare)


def _print_checks(config: Config, prepared: Prepared, *, weights: bool) -> None:
    folder, training = loading.local_folder(config.model, weights=weights), bool(len(prepared.train))
    preflight.print_checks(preflight.run_checks(config, prepared.encoder, folder, training=training))
    if ranks.current().first and (line := describe_cost(config, model_settings(folder), prepared)):
        log.info("%s", line)
