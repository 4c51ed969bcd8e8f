"""The command ``lmsys-unsloth``: its help, its mistakes, a user's own configuration, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmsys_unsloth.commands import completion
from lmsys_unsloth.commands.main import GROUPS, available, main

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, cwd: Path, status: int = 0) -> str:
    """Run the command in a process; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "lmsys_unsloth", *words],
        cwd=cwd, capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_the_help_lists_every_command_of_this_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 and main([]) == 0
    printed = capsys.readouterr().out
    for command in available().values():
        assert command.summary in printed
    assert {"train", "eval", "models", "doctor", "data check", "data convert"} <= available().keys()


def test_every_example_names_its_command() -> None:
    commands = [command for group in GROUPS.values() for command in group]
    assert all(command.name in command.example for command in commands)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "trian: no such command; did you mean `lmsys-unsloth train`?"),
        (["data"], "needs a second word: data check, data convert, data simulate"),
        (["model=llama3"], "the first word is a command, such as `lmsys-unsloth train model=llama3`"),
    ],
)
def test_a_wrong_command_is_explained(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_the_help_of_a_command_calls_it_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "simulate", "--help"]) == 0
    assert "lmsys-unsloth data simulate rows=57477" in capsys.readouterr().out


def test_messages_and_help_name_the_command_as_it_was_called(tmp_path: Path) -> None:
    assert "lmsys-unsloth eval" in run("train", "debug=parity", cwd=tmp_path, status=2)
    assert "resume=RUN" in run("train", "--help", cwd=tmp_path)


def test_a_users_own_configuration_is_laid_over_the_package_s(tmp_path: Path) -> None:
    model = tmp_path / "conf" / "model" / "mine.yaml"
    model.parent.mkdir(parents=True)
    model.write_text("defaults: [smollm2, _self_]\nname: mine\nlearning_rate: 0.125\n")
    (tmp_path / "conf" / "data").mkdir()
    (tmp_path / "conf" / "data" / "lmsys.yaml").write_text(
        "defaults: [simulated]\nname: lmsys\npath: my.csv\n"
    )
    printed = run("train", "model=mine", "data=lmsys", "--cfg", "job", cwd=tmp_path)
    assert "model/mine.yaml" in printed and "data/lmsys.yaml (replaces)" in printed
    assert (
        "learning_rate: 0.125" in printed and "path: my.csv" in printed and "licence: Apache-2.0" in printed
    )


def test_a_folder_conf_of_another_program_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "conf" / "server").mkdir(parents=True)
    (tmp_path / "conf" / "server" / "main.yaml").write_text("port: 80\n")
    assert "configuration in" not in run("train", "fold=9", cwd=tmp_path, status=2)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lmsys-unsloth ", {"train ", "data ", "models "}),
        ("lmsys-unsloth data ", {"check ", "convert ", "simulate "}),
        ("lmsys-unsloth train mo", {"model=", "model."}),
        ("lmsys-unsloth train model=smol", {"model=smollm2 ", "model=smollm2-1.7b "}),
        ("lmsys-unsloth train lora.fi", {"lora.first_layer="}),
        ("lmsys-unsloth eval eval.swap=", {"eval.swap=none ", "eval.swap=average ", "eval.swap=uncertain "}),
        ("lmsys-unsloth train data.path=tr", {"data.path=train.csv "}),
        ("lmsys-unsloth data check tr", {"train.csv "}),
    ],
)
def test_words_are_completed(
    line: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert expected <= set(completion.candidates(line))
    assert all(word.startswith(line.rpartition(" ")[2]) for word in completion.candidates(line))


def test_bash_completes_a_value_with_the_script(tmp_path: Path) -> None:
    (tmp_path / "lmsys-unsloth").write_text(f'#!/bin/sh\nexec {sys.executable} -m lmsys_unsloth "$@"\n')
    (tmp_path / "lmsys-unsloth").chmod(0o755)
    script = (
        'eval "$(lmsys-unsloth completion bash)"\nCOMP_LINE="lmsys-unsloth train model=phi"\n'
        'COMP_POINT=${#COMP_LINE}\n_lmsys_unsloth\necho "<${COMPREPLY[*]}>"\n'
    )
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, timeout=100)
    assert done.stdout == "<phi4 >\n", done.stderr
