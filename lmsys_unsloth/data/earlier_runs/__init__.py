"""What a training takes over from earlier runs: soft labels of a teacher, and adapters to start from.

Both can leak. A run whose adapters saw the labels of the rows that this run is validated on would make the
score too optimistic, so such runs are refused, and what was taken over is recorded in ``data.json``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.data.dataset import FoldData
from lmsys_unsloth.data.earlier_runs import initial_run, soft_labels


def use_earlier_runs(config: Config, fold: FoldData, run: Run) -> FoldData:
    """Apply ``data.soft_labels=RUN`` and check ``train.init_from``; the fold unchanged if both are unset.

    Adds ``teacher`` and ``stages`` to ``data.json`` of ``run``. The validation rows never change.

    Args:
        config: configuration of the training.
        fold: rows of the fold, not yet swapped; ``folds.csv`` of ``run`` holds all of its folds.
        run: directory of the training.

    Raises:
        UserError: an earlier run does not exist, does not fit, or was trained on validation rows.
    """
    train, description = fold.train, dict(fold.description)
    # with evaluate_on_train, rows that were trained on are scored on purpose
    held_out = [] if config.debug.evaluate_on_train else fold.validation
    if isinstance(config.data.soft_labels, str):
        train, description["teacher"] = soft_labels.use_teacher(
            config.data.soft_labels, fold, held_out, run, weight=config.train.teacher_weight
        )
    if config.train.init_from is not None:
        earlier = Run.open(Path(config.train.init_from))
        initial_run.check_init_from(config, earlier, held_out)
        description["stages"] = [*initial_run.stages(earlier), str(run.path)]
    if description != fold.description:
        write_json(run.data, description)
    return dataclasses.replace(fold, train=train, description=description)
