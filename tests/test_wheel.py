"""The built package works alone: installed from the wheel of an sdist, in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("lmsys_unsloth", "conf", "requirements", "pyproject.toml", "README.md", "LICENSE")


def call(*words: str | Path, cwd: Path, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of an sdist of a copy of the sources, made without a network."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])('dist')"
    call(sys.executable, "-c", build, "build_sdist", cwd=folder)
    with tarfile.open(next(folder.glob("dist/*.tar.gz"))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    call(sys.executable, "-c", build, "build_wheel", cwd=unpacked)
    return next(unpacked.glob("dist/*.whl"))


@pytest.mark.slow
def test_the_wheel_contains_everything_that_the_package_reads(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    read = [
        *(ROOT / "conf").rglob("*.yaml"),
        *(ROOT / "requirements").glob("*.txt"),
        *(ROOT / "lmsys_unsloth").rglob("*.yaml"),
        *(ROOT / "lmsys_unsloth").rglob("*.j2"),
        *(ROOT / "lmsys_unsloth").rglob("*.py"),
    ]
    relative = {str(file.relative_to(ROOT)).removeprefix("lmsys_unsloth/") for file in read}
    assert {f"lmsys_unsloth/{name}" for name in relative} <= packed


@pytest.mark.slow
def test_the_installed_command_trains_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    environment, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    call(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    (site,) = environment.glob("lib/python*/site-packages")
    # the dependencies of this environment, without a network and without copies
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    call(
        sys.executable,
        "-m",
        "pip",
        "--python",
        environment,
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=tmp_path,
    )
    command = environment / "bin" / "lmsys-unsloth"
    assert "data check" in call(command, "--help", cwd=empty)
    printed = call(command, "train", "debug=smoke", "hydra.run.dir=RUN", cwd=empty, HF_HUB_OFFLINE="1")
    assert "run directory: RUN" in printed
    assert {path.name for path in empty.iterdir()} == {"RUN"}
    assert (empty / "RUN" / "report.html").is_file() and (empty / "RUN" / "train.log").is_file()
    where = "import lmsys_unsloth; print(lmsys_unsloth.__file__)"
    assert str(site) in call(environment / "bin" / "python", "-c", where, cwd=empty)
