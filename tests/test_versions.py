"""Versions are defined in requirements/; pyproject.toml and environment.yml must list the same ones."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("dev", "docs", "gptq", "loggers", "serve", "sweeps")
FILES = ("base.txt", "constraints.txt", "no-deps.txt", *(f"{name}.txt" for name in EXTRAS))


def pins(*names: str) -> dict[str, str]:
    """Pinned versions by package in the requirement files: ``{"trl": "1.15.0", …}``."""
    lines = [line for name in names for line in (ROOT / "requirements" / name).read_text().splitlines()]
    return dict(
        match.groups()
        for line in lines
        if (match := re.fullmatch(r"([\w-]+)==([\w.]+)(?:\s*#.*)?", line.strip()))
    )


def pinned(requirements: list[str]) -> dict[str, str]:
    return dict(item.split("==", 1) for item in requirements if "==" in item)


def test_pyproject_lists_the_pinned_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pinned(project["dependencies"]) == pins("base.txt")
    for extra in EXTRAS:
        assert pinned(project["optional-dependencies"][extra]) == pins(f"{extra}.txt")
    low, high = re.search(r"torch>=([\d.]+),<([\d.]+)", " ".join(project["dependencies"])).groups()  # type: ignore[union-attr]
    for file in ("cpu.txt", "cuda.txt"):
        assert _number(low) <= _number(pins(file)["torch"]) < _number(high)


def test_environment_yml_lists_the_pinned_versions() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pinned(pip) == pins("cuda.txt", "base.txt")


def test_torch_on_a_gpu_is_the_one_that_was_measured() -> None:
    """benchmarks/results/ names it; unsloth, FlexAttention and the fast decoder ran on a GPU with it."""
    cuda = pins("cuda.txt")
    assert (cuda["torch"], cuda["torchvision"]) == ("2.11.0", "0.26.0")


def test_no_package_is_pinned_twice() -> None:
    seen = [name for file in FILES for name in pins(file)]
    assert len(seen) == len(set(seen))


def test_requirements_hold_exact_versions_and_no_addresses() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        for line in file.read_text().splitlines():
            assert "://" not in line and "index-url" not in line, line
            assert line.startswith("#") or not line.strip() or "==" in line, f"{file.name}: {line}"


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
