"""The simulated arena: judged conversations whose true probabilities are known.

Text is made from templates written for this project; bots have traits (right or wrong, terse or
wordy, ignores the form asked for, refuses, breaks off, answers in the wrong language); a person
with tastes judges by a Bradley–Terry model with ties. What the person likes can all be read off
the text, so the best possible log loss is that of the true probabilities.
"""

from __future__ import annotations

from random import Random
from typing import Literal

from lmsys_unsloth.data.arena import bots, judge, turns
from lmsys_unsloth.data.arena.bots import Behaviour
from lmsys_unsloth.data.arena.tasks import Task
from lmsys_unsloth.data.comparison import Comparison

TURNS = ((1, 2, 3, 4, 5, 6, 8), (84.0, 10.0, 3.0, 1.2, 0.9, 0.5, 0.4))
"""Numbers of turns and how often they occur in long rows, as in LMSYS."""
SHORT_TURNS = ((1, 2, 3), (84.0, 13.0, 3.0))


def simulate(rows: int, seed: int, length: Literal["short", "full"]) -> list[Comparison]:
    """Judged conversations; the same arguments give the same rows, and more rows only add to them.

    Args:
        rows: how many.
        seed: another seed gives other conversations.
        length: ``short`` is about 145 SmolLM2 tokens a row with prompt v2, ``full`` has LMSYS's lengths.
    """
    return [simulate_row(number, seed, length) for number in range(rows)]


def simulate_row(number: int, seed: int, length: Literal["short", "full"]) -> Comparison:
    """One judged conversation, the same for the same arguments."""
    rng = Random(f"{length} {seed} {number}")
    makers = turns.LONG if length == "full" else turns.SHORT
    count = rng.choices(*(TURNS if length == "full" else SHORT_TURNS))[0]
    asked = [turns.opening(rng, makers)]
    while len(asked) < count:
        asked.append(turns.following(rng, asked[-1], makers))
    bot_a, bot_b = rng.sample(bots.BOTS, 2)
    # one turn decides, more often than not the last: the others get a plain right answer
    decisive = count - 1 if rng.random() < 0.7 else rng.randrange(count)
    answers, worths = [], []
    for bot in (bot_a, bot_b):
        behaviour = bots.behave(rng, bot, asked[decisive])
        worths.append(judge.worth(asked[decisive], behaviour))
        answers.append(
            tuple(
                bots.answer(rng, task, behaviour if turn == decisive else _plain(rng, task))
                for turn, task in enumerate(asked)
            )
        )
    probabilities = judge.outcome_probabilities(*worths)
    return Comparison(
        id=f"sim-{seed}-{number}",
        prompts=tuple(task.prompt for task in asked),
        responses_a=answers[0],
        responses_b=answers[1],
        label=rng.choices((0, 1, 2), probabilities)[0],
        true_probabilities=probabilities,
        model_a=bot_a.name,
        model_b=bot_b.name,
    )


def _plain(rng: Random, task: Task) -> Behaviour:
    return Behaviour(sentences=max(1, round(rng.lognormvariate(2.0, 0.6))) if task.topic is not None else 0)
