from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from factories import CONF, composed

from lmsys_unsloth.config.parsing import parse_config
from lmsys_unsloth.config.prompt_file import use_prompt_file
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.model import smollm2
from lmsys_unsloth.prompting.encoding import RowEncoder

MINE = """
answers: {a: A, b: B, tie: C}
body:
  - "Judge. Costs: ${x} {json: 1}\\n"
  - each_turn: "{prompt}\\n{response_a}\\n{response_b}\\n"
  - "Answer:\\n"
truncation: {cut: tail}
"""


def settings(*overrides: str) -> dict[str, Any]:
    made = {**composed(*overrides)}
    for key in made.keys() - {
        "seed",
        "fold",
        "model",
        "prompt",
        "lora",
        "data",
        "train",
        "eval",
        "logger",
        "debug",
    }:
        del made[key]
    return made


def test_a_file_replaces_the_template_and_keeps_what_was_typed(tmp_path: Path) -> None:
    file = tmp_path / "my_prompt.yaml"
    file.write_text(MINE)
    typed = [f"prompt.file={file}", "prompt.max_tokens=600", "prompt.truncation.turns=all", "fold=1"]
    prompt = parse_config(use_prompt_file(settings(*typed), typed)).prompt
    assert prompt.name == "my_prompt" and prompt.source == "file my_prompt.yaml"
    assert prompt.body[0] == "Judge. Costs: ${x} {json: 1}\n"
    assert (prompt.max_tokens, prompt.truncation.turns, prompt.truncation.cut) == (600, "all", "tail")


def test_the_result_stands_alone_when_the_file_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    typed = [f"prompt.file={file}"]
    made = use_prompt_file(settings(*typed), typed)
    file.unlink()
    assert parse_config(made).prompt.file is None
    assert use_prompt_file(made) == made


def test_settings_that_name_no_file_stay_as_they_are() -> None:
    assert use_prompt_file(settings("prompt=v1")) == settings("prompt=v1")


def test_all_problems_of_a_file_are_listed_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "answers: {a: A, b: 2, tie: C}\nbody: [{eachturn: x}]\ntruncation: {turn: all}\ncolour: red\n"
    )
    typed = [f"prompt.file={file}"]
    with pytest.raises(UserError) as caught:
        parse_config(use_prompt_file(settings(*typed), typed))
    message = str(caught.value)
    assert message.startswith("4 problems in the configuration:")
    for expected in (
        "prompt.answers.b = 2: input should be a valid string",
        "item 0 is {'eachturn': 'x'}, but must be a text or `each_turn: text`",
        "prompt.truncation.turn: no such key; did you mean prompt.truncation.turns?",
        "prompt.colour: no such key",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "can't be read"),
        ("a: [1", "is not YAML"),
        ("- a\n- b\n", "must hold a mapping"),
        ("", "must hold"),
    ],
)
def test_a_file_that_is_no_template_is_explained(tmp_path: Path, content: str | None, expected: str) -> None:
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=expected):
        use_prompt_file({"prompt": {"file": str(file)}})


def test_the_template_in_the_documentation_works(tmp_path: Path) -> None:
    documentation = (CONF.parent / "docs" / "prompts.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", documentation, flags=re.DOTALL)
    file = tmp_path / "my_prompt.yaml"
    file.write_text(example, encoding="utf-8")
    typed = [f"prompt.file={file}"]
    prompt = parse_config(use_prompt_file(settings(*typed), typed)).prompt
    made = RowEncoder(smollm2.tokenizer(), prompt)
    row = made.encode([Comparison("1", ("Hi",), ("Hello!",), ("Yo",))])[0]
    assert made.preview(row) == (
        "Two assistants answered the same user.\n\n"
        "User: Hi\nFirst assistant: Hello!\nSecond assistant: Yo\n\n"
        "The better assistant is the⟦ first| second| both⟧"
    )
