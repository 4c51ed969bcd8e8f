"""The command ``train``: fine-tune on one fold, score the rows of that fold, write the report."""

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from lmsys_unsloth.cli import arguments
from lmsys_unsloth.cli.launch import launch
from lmsys_unsloth.cli.start.inputs import check_training
from lmsys_unsloth.cli.start.own_conf import use_own_conf
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.resources import CONF
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core import ranks
from lmsys_unsloth.sweep import runner
from lmsys_unsloth.sweep.plan import is_sweep


def train(config: Config, run: Run) -> None:
    # Slow imports: mistakes in the configuration have been reported before they begin.
    from lmsys_unsloth.cli.prepare import prepare_training

    first = ranks.current().first
    if first:
        run.describe(config, arguments.command_line())
    prepared = prepare_training(config, arguments.output())
    if config.debug.preview:
        return
    from lmsys_unsloth.evaluate.passes.partial_scores import PartialScores
    from lmsys_unsloth.evaluate.scoring import predict_rows
    from lmsys_unsloth.report.results import report_scoring
    from lmsys_unsloth.train.training import train_or_load

    with arguments.tracked(config, run, "train") as tracker:
        model = train_or_load(config, run, prepared, tracker)
        partial = PartialScores(run, config, run.adapter, prepared.scored)
        predictions, speed = predict_rows(model, prepared, config, partial)
        if not first:
            return
        outcome = report_scoring(run, config, prepared, predictions, speed)
        tracker.publish(outcome, run)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")  # type: ignore[untyped-decorator]
def run(composed: DictConfig) -> None:
    with arguments.messages():
        config, run = arguments.open_training_run(composed)
        if not run.config.is_file():
            check_training(config)
        with arguments.locked(run):
            train(config, run)


def main(words: Sequence[str]) -> int:
    """Run the command with these arguments; returns 0, or ends the process with another status."""
    sys.argv[1:] = words
    if is_sweep(words):
        with arguments.messages():
            use_own_conf()
            arguments.require_readable(words)
        return runner.main(words)
    launch(run)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
