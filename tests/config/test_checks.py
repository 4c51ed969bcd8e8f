"""Contradictions between values that are valid on their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import composed, config

from lmsys_unsloth.config.checks import contradictions, prompt_problems
from lmsys_unsloth.config.parsing import parse_config
from lmsys_unsloth.config.prompt_schema import PromptConfig
from lmsys_unsloth.core.errors import UserError

TURN = {"each_turn": "{prompt} {response_a} {response_b}\n"}


def template(**values: object) -> PromptConfig:
    minimal = {"name": "mine", "answers": {"a": " A", "b": " B", "tie": " Tie"}, "body": [TURN, "Best:"]}
    return PromptConfig.model_validate({**minimal, **values})


def test_the_shipped_configuration_has_no_contradictions() -> None:
    assert contradictions(dict(config())) == []


def test_sections_that_are_invalid_on_their_own_are_not_compared() -> None:
    assert contradictions({}) == []
    assert contradictions({"fold": 9, "prompt": template(max_tokens=99999)}) == []


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["prompt.max_tokens=8193"],
            "prompt.max_tokens = 8193: must not be above model.max_seq_length = 8192",
        ),
        (["fold=5"], "fold = 5: data.folds = 5, so the folds are 0 to 4"),
        (["data=lmsys"], "data.path = None: data=lmsys needs data.path=FILE"),
        (["model.package=null", "model.repo=null"], "all null; one must say where the weights are"),
        (["model=auto"], "model.path = None: model=auto needs model.path=DIR"),
        (["model.path=no_such_folder"], "must be a folder with a config.json"),
        (["prompt.reply=Best"], "prompt.reply = 'Best': has a meaning only with prompt.chat=true"),
        (["head=linear", "train.loss=vocabulary"], "set train.loss=answers or head.kind=lm"),
        (["head=lm_trained", "train.loss=answer_eos"], "set train.loss=answers or head.kind=lm"),
        (["head=davidson", "train.loss=vocabulary"], "set train.loss=answers or head.kind=lm"),
        (["train.loss=vocabulary"], "set train.loss=answers or head.offset=none"),
        (["head=davidson", "data.swap=random"], "data.swap = 'random': head.kind=davidson averages both"),
        (["eval.time_budget=1h30m"], "eval.time_budget = 1h30m: decides how many rows are scored with"),
        (["head=davidson", "eval.swap=uncertain"], "eval.swap = 'uncertain': head.kind=davidson averages"),
    ],
)
def test_contradictions_between_sections_are_named(overrides: list[str], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(composed(*overrides))
    assert str(caught.value).startswith("1 problem in the configuration:") and problem in str(caught.value)


def test_davidson_sets_what_it_needs() -> None:
    chosen = config("head=davidson", "data=lmsys", "data.path=x.csv")
    assert (chosen.head.kind, chosen.data.swap, chosen.eval.swap) == ("davidson", "both", "average")
    swaps = [config("head=linear", f"model={name}").eval.swap for name in ("llama3", "smollm2")]
    assert swaps == ["none", "average"]


def test_a_model_folder_needs_a_config_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be a folder with a config\.json"):
        config(f"model.path={tmp_path}")
    (tmp_path / "config.json").touch()
    assert config(f"model.path={tmp_path}").model.path == str(tmp_path)


def test_a_model_of_any_kind_is_named_after_its_folder(tmp_path: Path) -> None:
    (tmp_path / "pythia-1b").mkdir()
    (tmp_path / "pythia-1b" / "config.json").touch()
    made = config("model=auto", f"model.path={tmp_path / 'pythia-1b'}/")
    assert (made.model.name, made.model.repo) == ("pythia-1b", None)
    assert parse_config(made.model_dump(mode="json")) == made
    (tmp_path / "pythia-1b").rename(tmp_path / "auto")
    assert config("model=auto", f"model.path={tmp_path / 'auto'}").model.name == "auto"
    (tmp_path / "auto").rename(tmp_path / "pythia-1b")
    assert config("model=auto", f"model.path={made.model.path}", "model.name=mine").model.name == "mine"


def test_gguf_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").touch()
    for path in (tmp_path, tmp_path / "model-Q4_K_M.gguf"):
        with pytest.raises(UserError, match=r"GGUF files, a format of llama\.cpp that bitsandbytes does"):
            config(f"model.path={path}")


def test_all_contradictions_of_a_template_are_listed() -> None:
    found = prompt_problems(
        template(
            answers={"a": "A", "b": "A", "tie": "C"},
            body=["Hi", TURN],
            reply="Best: ",
            system="like {prompt}",
            max_tokens=1000,
            truncation={"when_longer_than": 2000},
        )
    )
    expected = [
        "prompt: system holds {prompt}",
        "prompt.body: must end with a fixed text",
        "prompt.reply = 'Best: ': has a meaning only with prompt.chat=true",
        "prompt.truncation.when_longer_than = 2000: must not be above prompt.max_tokens = 1000",
        "prompt.answers = {'a': 'A', 'b': 'A', 'tie': 'C'}: must be different texts",
    ]
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start)


def test_a_correct_template_has_no_problems() -> None:
    assert prompt_problems(template()) == []
    assert prompt_problems(template(chat=True, body=[TURN], reply="Best: ")) == []
