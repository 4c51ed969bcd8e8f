"""The command ``eval``: score a trained run again, an untrained model, or several runs together."""

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from lmsys_unsloth.cli import arguments
from lmsys_unsloth.cli.arguments import Member
from lmsys_unsloth.cli.launch import launch
from lmsys_unsloth.cli.start.inputs import check_scoring
from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.resources import CONF
from lmsys_unsloth.config.run_directory import Run


def evaluate(config: Config, members: Sequence[Member], output: Run) -> None:
    from lmsys_unsloth.cli import evaluation

    output.describe(config, arguments.command_line())
    if config.debug.parity:
        from lmsys_unsloth.cli import parity

        if not parity.check_parity(config, members, output):
            sys.exit(1)
        return
    if config.engine.check is not None:
        from lmsys_unsloth.predict.engine_check import check_engine

        if not check_engine(config, [member.run for member in members], output):
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


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="eval")  # type: ignore[untyped-decorator]
def run(composed: DictConfig) -> None:
    with arguments.messages():
        config, members, output = arguments.open_evaluation(composed)
        check_scoring(config, [member.run for member in members])
        with arguments.locked(output):
            evaluate(config, members, output)


def main(words: Sequence[str]) -> int:
    """Run the command with these arguments; returns 0, or ends the process with another status."""
    sys.argv[1:] = words
    launch(run)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
