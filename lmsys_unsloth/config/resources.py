"""Folders of a checkout that an installed package contains too: ``conf/`` and ``requirements/``.

In a checkout they are symbolic links in the package's folder; a wheel contains the files themselves.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

_PACKAGE = Path(__file__).resolve().parents[1]


def _folder(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name  # a copy that lost its symbolic links


def script_of(command: Literal["train", "eval"]) -> Path:
    """The script that runs a command in another process: of the checkout, or of the installed package."""
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        return _PACKAGE.parent / f"{command}.py"
    return _PACKAGE / "commands" / f"{command}.py"


CONF = _folder("conf")
"""Folder of the configuration."""

_REQUIREMENTS = _folder("requirements")


@contextlib.contextmanager
def composing() -> Iterator[Callable[..., Any]]:
    """Within the block, Hydra's ``compose(overrides)`` of the configuration of ``train.py``."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        yield functools.partial(compose, "train")


def pinned_versions(*files: str) -> dict[str, str]:
    """Pinned version of each package in files of ``requirements/``.

    >>> pinned_versions("base.txt")["hydra-core"]
    '1.3.8'
    """
    lines = [line for name in files for line in (_REQUIREMENTS / name).read_text("utf-8").splitlines()]
    found = (re.match(r"([\w.-]+)==([\w.]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}
