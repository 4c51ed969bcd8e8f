"""Score a trained run again, an untrained model, or several runs together.

python eval.py run=RUN                           # exactly as the run was configured
python eval.py run=RUN data.path=test.csv        # other rows; unlabelled ones give submission.csv
python eval.py runs=[RUN0,RUN1]                  # merge folds into a cross-validation, average models
python eval.py runs=[RUN0,RUN1] data.path=test.csv eval.stack=true     # average, calibrated and stacked
python eval.py model=llama3 prompt=v1 data=lmsys data.path=train.csv   # zero-shot
python eval.py run=RUN resume=OUTPUT             # after an interruption: the same command, and its output
torchrun --nproc-per-node=2 eval.py run=RUN      # on two GPUs
python eval.py model=llama3 data=lmsys data.path=train.csv debug=parity   # compare its forward passes
"""

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from lmsys_unsloth.cli import arguments
from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.cli.launch import launch
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run


def evaluate(config: Config, members: Sequence[Member], output: Run) -> None:
    from lmsys_unsloth.cli import evaluation

    output.describe(config, arguments.command_line())
    if config.debug.parity:
        from lmsys_unsloth.cli import parity

        if not parity.check_parity(config, members, output):
            sys.exit(1)
        return
    with arguments.tracked(config, output, "cv" if len(members) > 1 else "eval") as tracker:
        if not members:
            outcome = evaluation.evaluate_untrained(config, output)
        elif len(members) == 1:
            outcome = evaluation.evaluate_run(members[0], output)
        else:
            outcome = evaluation.evaluate_runs(members, output)
        tracker.publish(outcome, output)


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(composed: DictConfig) -> None:
    with arguments.messages():
        config, members, output = arguments.open_evaluation(composed)
        with arguments.locked(output):
            evaluate(config, members, output)


if __name__ == "__main__":
    launch(main)
