"""Score a trained run again, an untrained model, or several runs together.

python eval.py run=RUN                           # exactly as the run was configured
python eval.py run=RUN data.path=test.csv        # other rows; unlabelled ones give submission.csv
python eval.py runs=[RUN0,RUN1]                  # merge folds into a cross-validation, average models
python eval.py model=llama3 prompt=v1 data=lmsys data.path=train.csv   # zero-shot
"""

import sys

import hydra
from omegaconf import DictConfig

from lmsys_unsloth import cli
from lmsys_unsloth.config import Config
from lmsys_unsloth.runs import Run


def evaluate(config: Config, trained: list[Run], output: Run) -> None:
    from lmsys_unsloth import evaluation

    output.describe(config, cli.command_line())
    several = len(trained) > 1
    with cli.tracked(config, output, "cv" if several else "eval") as tracker:
        if several:
            outcome = evaluation.merge(config, trained, output)
        else:
            outcome = evaluation.rescore(config, trained[0] if trained else None, output)
        tracker.publish(outcome, output)


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(composed: DictConfig) -> None:
    with cli.messages():
        evaluate(*cli.evaluation_config(composed))


if __name__ == "__main__":
    sys.argv[1:] = cli.prepare_arguments(sys.argv[1:])
    main()
