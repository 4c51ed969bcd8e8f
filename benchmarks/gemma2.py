"""Measure how typical mistakes with Gemma 2 change the probabilities; prints the table of docs/gemma2.md.

python benchmarks/gemma2.py
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / name) for name in ("", "tests")]

from tiny import probabilities, random_rows, tiny_model


def main() -> None:
    rows = random_rows()
    right = probabilities(tiny_model("gemma2"), rows)

    def change(model: torch.nn.Module, changed: list[np.ndarray] = rows) -> float:
        return float((probabilities(model, changed) - right).abs().max())

    head = tiny_model("gemma2")
    head.lm_head.weight = torch.nn.Parameter(torch.randn_like(head.lm_head.weight) * 0.5)
    mistakes = {
        "random LM head": change(head),
        "no final cap": change(tiny_model("gemma2", final_logit_softcapping=None)),
        "no attention cap": change(tiny_model("gemma2", attn_logit_softcapping=None)),
        "no sliding window": change(tiny_model("gemma2", sliding_window=256)),
        "query scale of the head width (16) instead of 32": change(
            tiny_model("gemma2", query_pre_attn_scalar=16)
        ),
        "two BOS": change(tiny_model("gemma2"), [np.concatenate([ids[:1], ids]) for ids in rows]),
        "bfloat16 model": change(copy.deepcopy(tiny_model("gemma2")).bfloat16()),
        "none: the same rows in another batch": float(
            (torch.cat([probabilities(tiny_model("gemma2"), [ids]) for ids in rows]) - right).abs().max()
        ),
    }
    print("| mistake | largest change of a probability |\n|---|---|")
    for name, value in mistakes.items():
        print(f"| {name} | {value:.1e} |")


if __name__ == "__main__":
    main()
