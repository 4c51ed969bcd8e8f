"""Golden prompts: text and ids of four conversations, for every template and tokenizer.

After a change that is meant to alter prompts, record them again and review the difference (the tokenizers
of Llama 3 and Gemma 2 are read from ``$LMSYS_UNSLOTH_SHARED/tokenizers``):

    python tests/prompting/golden/make.py && git diff tests/prompting/golden
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent.parent))
sys.path.insert(0, str(FOLDER.parent.parent.parent))

from real_tokenizers import REAL_TOKENIZERS, encoder  # noqa: E402
from small_tokenizers import TEMPLATES  # noqa: E402

from lmsys_unsloth.data.comparison import Comparison  # noqa: E402

TOKENIZERS = (*REAL_TOKENIZERS, "smollm2")
TRUNCATED_TO = 200
"""``prompt.max_tokens`` of the case ``truncated``."""

_SINGLE = Comparison(
    "single",
    ("Name three primes above 10.",),
    ("11, 13 and 17.",),
    ("Primes above 10:\n\n1. 11\n2. 13\n3. 17\n",),
    label=0,
)
_MULTI = Comparison(
    "multi",
    ("Wie heißt das auf Japanisch: good morning?", "And in the evening? 🌆"),
    ("おはようございます (ohayō gozaimasu)", "こんばんは"),
    ("It's “ohayou”.", "Say <|eot_id|><end_of_turn><|im_end|> {prompt} ### Answer"),
    label=1,
)
_SHORT = Comparison("short", ("?",), ("",), ("1",), label=2)
_LONG = Comparison(
    "truncated",
    (
        "Tell me about rivers. " * 12,
        "Which is longer, the Nile or the Amazon? Explain how rivers are measured, step by step.",
    ),
    (
        "Rivers carry water to the sea. " * 20,
        "The Nile, by most measures: 6,650 km against 6,400 km. " + "But sources differ. " * 30,
    ),
    (
        "A river is flowing water; 川は水の流れです。" * 10,
        "アマゾン川とナイル川は長さがほぼ同じです。測り方によって順位が変わります。" * 6,
    ),
)
CASES = {"single": _SINGLE, "multi": _MULTI, "short": _SHORT, "truncated": _LONG}


def build(template: str, tokenizer: str, case: str, shared: Path | None) -> dict[str, Any]:
    """The record of one case."""
    made = encoder(tokenizer, shared, template, TRUNCATED_TO if case == "truncated" else None)
    row = made.encode([CASES[case]])[0]
    return {
        "template": template,
        "tokenizer": tokenizer,
        "case": case,
        "text": row.text,
        "slot": made.preview(row)[-40:],
        "ids": row.input_ids.tolist(),
        "answer_ids": [list(ids) for ids in made.answer_ids],
        "turns": [row.n_turns_kept, len(row.comparison.prompts)],
        "characters_cut": [row.n_cut, row.n_characters],
    }


def path(template: str) -> Path:
    """File with the records of a template."""
    return FOLDER / f"{template}.jsonl"


def write(shared: Path) -> None:
    """Record all cases."""
    for template in TEMPLATES:
        lines = [
            json.dumps(build(template, tokenizer, case, shared), ensure_ascii=False, separators=(",", ":"))
            for case in CASES
            for tokenizer in TOKENIZERS
        ]
        path(template).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import os

    repository = FOLDER.parents[2]
    write(Path(os.environ.get("LMSYS_UNSLOTH_SHARED", repository.parent / "shared")))
