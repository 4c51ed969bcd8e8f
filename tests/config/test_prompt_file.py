"""Template files of the user: ``prompt.file=…``."""

from __future__ import annotations

import re
from pathlib import Path

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


def test_a_file_replaces_the_template_but_not_the_overrides(tmp_path: Path) -> None:
    file = tmp_path / "my_prompt.yaml"
    file.write_text(MINE)
    typed = [f"prompt.file={file}", "prompt.max_tokens=600", "prompt.truncation.turns=last_only", "fold=1"]
    prompt = parse_config(use_prompt_file(composed(*typed), typed)).prompt
    assert prompt.name == "my_prompt" and prompt.source == "file my_prompt.yaml"
    assert prompt.body[0] == "Judge. Costs: ${x} {json: 1}\n"
    assert (prompt.max_tokens, prompt.truncation.turns, prompt.truncation.cut) == (600, "last_only", "tail")


def test_the_result_does_not_depend_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    typed = [f"prompt.file={file}"]
    made = use_prompt_file(composed(*typed), typed)
    file.unlink()
    assert parse_config(made).prompt.file is None
    assert use_prompt_file(made) == made


@pytest.mark.parametrize("name", ["v1", "v2", "v3", "v4", "v5", "v6"])
def test_a_copy_of_a_published_template_is_that_template(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    copy.write_text((CONF / "prompt" / f"{name}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    typed = [f"prompt.file={copy}"]
    found = parse_config(use_prompt_file(composed(*typed), typed)).prompt
    assert found == parse_config(composed(f"prompt={name}")).prompt


def test_without_a_file_nothing_changes() -> None:
    assert use_prompt_file(composed("prompt=v1")) == composed("prompt=v1")


def test_all_problems_of_a_file_are_in_one_message(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "answers: {a: A, b: 2, tie: C}\nbody: [{eachturn: x}]\ntruncation: {turn: all}\ncolour: red\n"
    )
    typed = [f"prompt.file={file}"]
    with pytest.raises(UserError) as caught:
        parse_config(use_prompt_file(composed(*typed), typed))
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
def test_a_file_without_a_template_is_an_error(tmp_path: Path, content: str | None, expected: str) -> None:
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
    prompt = parse_config(use_prompt_file(composed(*typed), typed)).prompt
    made = RowEncoder(smollm2.tokenizer(), prompt)
    row = made.encode([Comparison("1", ("Hi",), ("Hello!",), ("Yo",))])[0]
    assert made.preview(row) == (
        "Two assistants answered the same user.\n\n"
        "User: Hi\nFirst assistant: Hello!\nSecond assistant: Yo\n\n"
        "The better assistant is the⟦ first| second| both⟧"
    )
