"""The list of models: every one composes, is of a known family, and has the size that its name says."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from factories import CONF, REPOSITORY, config

from lmsys_unsloth import models
from lmsys_unsloth.cli import model_list
from lmsys_unsloth.cli.model_list import ListedModel, list_models
from lmsys_unsloth.model import memory
from lmsys_unsloth.model.families.known import family_of

NAMES = sorted(file.stem for file in (CONF / "model").glob("*.yaml") if file.stem != "auto")
NAMED_AFTER_ITS_SIZE = re.compile(r"-(\d+(?:\.\d+)?)b$")
SIZES = {
    "smollm2": 0.135, "gemma2-2b": 2.6, "llama3": 8, "llama3.1": 8, "gemma2": 9, "mistral-nemo": 12,
    "phi4": 14,
}  # fmt: skip
"""Billions of parameters of the models whose names do not say it precisely."""


@pytest.fixture(scope="module")
def listed() -> dict[str, ListedModel]:
    return {model.name: model for model in list_models()}


def test_every_model_is_listed_from_small_to_large(listed: dict[str, ListedModel]) -> None:
    assert sorted(listed) == NAMES
    sizes = [model.parameters for model in listed.values()]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_the_size_of_its_name_and_a_known_family(
    name: str, listed: dict[str, ListedModel]
) -> None:
    size = SIZES.get(name) or float(NAMED_AFTER_ITS_SIZE.search(name)[1])  # type: ignore[index]
    assert listed[name].parameters / 1e9 == pytest.approx(size, rel=0.1, abs=0.25)
    assert family_of({"model_type": listed[name].family}) is not None
    assert listed[name].window == config(f"model={name}").model.max_seq_length
    assert listed[name].licence == config(f"model={name}").model.licence


def test_published_numbers_of_parameters(listed: dict[str, ListedModel]) -> None:
    """Without norms and biases, which are fewer than one in a thousand."""
    published = {"gemma3-1b": 999_885_952, "llama3": 8_030_261_248, "smollm2": 134_515_008}
    for name, parameters in published.items():
        assert listed[name].parameters == pytest.approx(parameters, rel=1e-3)


def test_the_document_lists_every_model_and_family(listed: dict[str, ListedModel]) -> None:
    text = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
    families = {model.family for model in listed.values()}
    assert not [name for name in (*NAMES, *families) if f"`{name}`" not in text]


def test_training_needs_more_memory_than_scoring(listed: dict[str, ListedModel]) -> None:
    for model in listed.values():
        quantised = model.parameters * memory.NF4_BYTES
        assert quantised < model.scoring_bytes < model.training_bytes < model.fast_training_bytes


@pytest.mark.parametrize(("free", "expected"), [(7.0e9, {"scoring"}), (1e15, {"training"}), (0, {"no"})])
def test_what_fits_follows_the_free_memory(
    free: float, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: free)
    assert {model.fits for model in list_models() if model.name == "llama3"} == expected


def test_repositories_are_those_that_unsloth_knows(listed: dict[str, ListedModel]) -> None:
    (folder,) = importlib.util.find_spec("unsloth").submodule_search_locations  # type: ignore[misc, union-attr]
    known = Path(folder, "models", "mapper.py").read_text(encoding="utf-8")
    ours = {model.weights for model in listed.values() if model.weights.startswith("unsloth/")}
    assert len(ours) >= 20
    assert not [repo for repo in ours if f'"{repo}"' not in known]


def test_the_table_fits_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert models.main([]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.split(" ")[0] in NAMES]
    assert len(rows) == len(NAMES) and "…" not in printed
    assert "Free memory of" in printed


def test_the_list_for_programs_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["--json"]) == 0
    assert {model["name"] for model in json.loads(capsys.readouterr().out)} == set(NAMES)


def test_a_model_without_known_shapes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_list, "CONF", tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").touch()
    assert models.main([]) == 2 and "mine: shapes not known; add them" in capsys.readouterr().err


@pytest.mark.slow
def test_the_list_needs_no_slow_imports() -> None:
    script = (
        "import sys, lmsys_unsloth.models; "
        "print(sorted({'unsloth', 'transformers', 'peft', 'trl'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, timeout=120
    )
    assert done.stdout == "[]\n", done
