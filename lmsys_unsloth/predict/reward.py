"""A predictor as the reward function of trl's trainers for reinforcement learning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lmsys_unsloth.predict.conversations import Turns
from lmsys_unsloth.predict.predictor import Predictor


class PreferenceReward:
    """Rewards a completion by its expected share of points against the others of the same prompt.

    It is passed to ``GRPOTrainer`` or ``OnlineDPOTrainer`` as one of its ``reward_funcs``. A win is one
    point, a tie half a point, so the mean reward of a group is 0.5, and what the trainer makes of it is the
    advantage over the policy's other completions.

    Args:
        predictor: compares completions.
        round_robin: up to this many completions of a prompt, all pairs are compared; see
            :meth:`~lmsys_unsloth.predict.predictor.Predictor.rank`.
    """

    __name__ = "preference"  # under which trl logs the reward

    def __init__(self, predictor: Predictor, *, round_robin: int = 8) -> None:
        self.predictor, self.round_robin = predictor, round_robin

    def __call__(self, prompts: Sequence[Turns], completions: Sequence[Turns], **_: Any) -> list[float]:
        """Compute rewards from 0 to 1, one for each completion; 0.5 for the only completion of a prompt.

        Args:
            prompts: the prompt of each completion, texts or chat messages.
            completions: texts, or lists with the assistant's message.

        Raises:
            UserError: a prompt or completion can't be compared.
        """
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(json.dumps(prompt, sort_keys=True), []).append(index)
        rewards = [0.5] * len(prompts)
        for members in groups.values():
            responses = [completions[index] for index in members]
            found = self.predictor.rank(prompts[members[0]], responses, round_robin=self.round_robin)
            for index, score in zip(members, found.scores.tolist(), strict=True):
                rewards[index] = score
        return rewards
