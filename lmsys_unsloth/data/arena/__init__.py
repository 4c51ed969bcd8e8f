"""The simulated arena: judged conversations whose true probabilities are known.

Text is made from templates written for this project. Ten models have traits (right or wrong, terse or
wordy, ignoring the requested form, refusing, breaking off, answering in the wrong language), and one
person judges by a Bradley-Terry model with ties. Every trait is visible in the text, so the best
possible log loss is that of the true probabilities.
"""

from __future__ import annotations

from random import Random
from typing import Literal

from lmsys_unsloth.data.arena import answers, conversations
from lmsys_unsloth.data.arena.answers import Behaviour
from lmsys_unsloth.data.arena.questions import Question
from lmsys_unsloth.data.comparison import Comparison

TURNS = {
    "full": ((1, 2, 3, 4, 5, 6, 8), (84.0, 10.0, 3.0, 1.2, 0.9, 0.5, 0.4)),
    "short": ((1, 2, 3), (84.0, 13.0, 3.0)),
}
"""Numbers of turns and their weights; those of ``full`` are LMSYS's."""


def simulate(rows: int, seed: int, length: Literal["short", "full"]) -> list[Comparison]:
    """Simulate judged conversations; the same arguments give the same rows, and more rows only add to them.

    Args:
        rows: number of rows.
        seed: another seed gives other conversations.
        length: ``short`` is about 145 SmolLM2 tokens a row with prompt v2, ``full`` has LMSYS's lengths.
    """
    return [simulate_row(number, seed, length) for number in range(rows)]


def simulate_row(number: int, seed: int, length: Literal["short", "full"]) -> Comparison:
    """Simulate one judged conversation."""
    rng = Random(f"{length} {seed} {number}")
    makers = conversations.LONG if length == "full" else conversations.SHORT
    count = rng.choices(*TURNS[length])[0]
    turns = [conversations.opening(rng, makers)]
    while len(turns) < count:
        turns.append(conversations.following(rng, turns[-1], makers))
    models = rng.sample(answers.MODELS, 2)
    # One turn, usually the last, decides; in the others both models give a plain right answer.
    decisive = count - 1 if rng.random() < 0.7 else rng.randrange(count)
    responses, qualities = [], []
    for model in models:
        behaviour = answers.draw_behaviour(rng, model, turns[decisive])
        qualities.append(answers.quality(turns[decisive], behaviour))
        responses.append(
            tuple(
                answers.write_answer(rng, question, behaviour if turn == decisive else _plain(rng, question))
                for turn, question in enumerate(turns)
            )
        )
    probabilities = answers.outcome_probabilities(*qualities)
    return Comparison(
        id=f"sim-{seed}-{number}",
        prompts=tuple(question.prompt for question in turns),
        responses_a=responses[0],
        responses_b=responses[1],
        label=rng.choices((0, 1, 2), probabilities)[0],
        true_probabilities=probabilities,
        model_a=models[0].name,
        model_b=models[1].name,
    )


def _plain(rng: Random, question: Question) -> Behaviour:
    return Behaviour(sentences=max(1, round(rng.lognormvariate(2.0, 0.6))) if question.topic else 0)
