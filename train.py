"""Fine-tune a language model to predict which of two answers a person prefers, on one fold.

python train.py                                  # SmolLM2 on the simulated arena, any machine
python train.py model=llama3 prompt=v2 data=lmsys data.path=train.csv fold=0
python train.py -m prompt=v1,v2 fold=0,1         # a sweep
python train.py resume=RUN                       # go on after an interruption
"""

import sys

import hydra
from omegaconf import DictConfig

from lmsys_unsloth import cli
from lmsys_unsloth.config import Config
from lmsys_unsloth.runs import Run


def train(config: Config, run: Run) -> None:
    from lmsys_unsloth.rows import data

    run.describe(config, cli.command_line())
    fold = data.limited(data.load_fold(config.data, config.fold, run.path), config.debug, config.seed)
    # Slow imports: mistakes in the configuration and in the data have been answered before they begin.
    from lmsys_unsloth import evaluation, models, preflight, preview, training
    from lmsys_unsloth.comparisons import swap_rows
    from lmsys_unsloth.prompting import tokens

    tokenizer = models.load_tokenizer(config.model)
    encoder = tokens.RowEncoder(tokenizer, config.prompt)
    units = swap_rows(fold.train, config.data.swap, config.seed)
    train_rows = tokens.encode_cached(encoder, [row for unit in units for row in unit], progress=True)
    validation_rows = tokens.encode_cached(encoder, fold.validation, progress=True)
    preview.show(run, fold, encoder, train_rows, validation_rows, whole=config.debug.preview)
    folder = models.local_folder(config.model, weights=not config.debug.preview)
    preflight.show(preflight.checks(config, encoder, folder))
    if config.debug.preview:
        return

    with cli.tracked(config, run, "train") as tracker:
        model = training.trained_model(
            config, run, tokenizer, encoder.answer_ids, train_rows, [len(unit) for unit in units], tracker
        )
        predicted, speed = evaluation.predict(
            model, encoder, fold.validation, validation_rows, config, config.fold, fold.groups
        )
        baseline = evaluation.learned_from(fold.train, fold.validation)
        outcome = evaluation.conclude(run, config, predicted, fold.validation, {"scoring": speed}, **baseline)
        tracker.publish(outcome, run)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(composed: DictConfig) -> None:
    with cli.messages():
        train(*cli.open_training_run(composed))


if __name__ == "__main__":
    sys.argv[1:] = cli.prepare_arguments(sys.argv[1:])
    main()
