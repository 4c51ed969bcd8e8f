"""Fine-tune a language model to predict which of two answers a person prefers, on one fold.

python train.py                                  # SmolLM2 on the simulated arena, any machine
python train.py model=llama3 prompt=v2 data=lmsys data.path=train.csv fold=0
python train.py -m prompt=v1,v2 fold=0,1         # a sweep; cv=5 instead of -m: all folds, merged at the end
python train.py resume=RUN                       # resume after an interruption
torchrun --nproc-per-node=2 train.py …           # on two GPUs
"""

import sys

import hydra
from omegaconf import DictConfig

from lmsys_unsloth.cli import arguments
from lmsys_unsloth.cli.launch import launch
from lmsys_unsloth.config.parsing import Config
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


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(composed: DictConfig) -> None:
    with arguments.messages():
        config, run = arguments.open_training_run(composed)
        with arguments.locked(run):
            train(config, run)


if __name__ == "__main__":
    if is_sweep(sys.argv[1:]):
        sys.exit(runner.main(sys.argv[1:]))
    launch(main)
