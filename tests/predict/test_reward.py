"""The reward function of trl's trainers: groups of completions, and one step of a tiny policy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmsys_unsloth.predict.ranking import rank
from lmsys_unsloth.predict.reward import PreferenceReward


class ByLength:
    """Ranks longer responses first."""

    def rank(self, prompt: Any, responses: Sequence[Any], *, round_robin: int) -> Any:
        lengths = np.array([len(r if isinstance(r, str) else r[0]["content"]) for r in responses])

        def compare(pairs: Any) -> Any:
            return np.array([[lengths[a] > lengths[b], lengths[a] < lengths[b], lengths[a] == lengths[b]]
                             for a, b in pairs], dtype=np.float32)  # fmt: skip

        return rank(len(responses), compare, round_robin=round_robin)


def test_completions_compete_with_those_of_the_same_prompt() -> None:
    reward = PreferenceReward(ByLength())  # type: ignore[arg-type]
    first, second = [{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Bye"}]
    texts = ["a", "abc", "ab", "abcd", "x"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    found = reward([first, first, first, second, "alone"], completions, completion_ids=[[1]] * 5)
    assert found == [0.0, 1.0, 0.5, 0.5, 0.5]
    assert reward(["a", "a"], ["same", "size"]) == [0.5, 0.5]


@pytest.mark.slow
def test_trainers_of_trl_train_a_step_of_a_tiny_policy(folder: Path, tmp_path: Path) -> None:
    script = f"""
import os
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from lmsys_unsloth import Predictor, PreferenceReward

common = dict(
    output_dir={str(tmp_path)!r}, max_steps=1, learning_rate=1e-2, logging_steps=1, report_to=[],
    use_cpu=True, bf16=False, save_strategy="no", per_device_train_batch_size=4,
)
reward = PreferenceReward(Predictor.load({str(folder / "fold0")!r}))

def train(kind, settings, mean):
    model = AutoModelForCausalLM.from_pretrained({str(folder / "model")!r})
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    trainer = kind(
        model=model, reward_funcs=reward, args=settings,
        train_dataset=Dataset.from_list([{{"prompt": "Say something."}}] * 4),
        processing_class=AutoTokenizer.from_pretrained({str(folder / "model")!r}, padding_side="left"),
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert abs(logged[mean] - 0.5) < 1e-3, logged
    assert not before.equal(model.model.layers[0].mlp.up_proj.weight)

grpo = GRPOConfig(num_generations=4, max_completion_length=6, **common)
train(GRPOTrainer, grpo, "rewards/preference/mean")
online = OnlineDPOConfig(max_new_tokens=6, max_length=64, **common)
train(OnlineDPOTrainer, online, "objective/scores")
print("trained")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "trained" in done.stdout, done.stderr[-3000:]
