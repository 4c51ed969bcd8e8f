"""A user's own ``conf/`` in the working directory, laid over the configuration of the package.

A file there is found before the package's file of the same name, and may name the package's files in its
``defaults``: ``conf/model/mine.yaml`` is chosen with ``model=mine``.
"""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from lmsys_unsloth.config.resources import CONF

FOLDER = "conf"


def own_conf() -> Path | None:
    """The user's folder; None if there is none, it has nothing for this package, or it is the package's."""
    folder = Path.cwd() / FOLDER
    if not folder.is_dir() or folder.samefile(CONF) or not own_files(folder):
        return None
    return folder


def own_files(folder: Path) -> list[str]:
    """Files of a folder that this package reads: those in its groups, and replacements of other files.

    >>> own_files(CONF / "nowhere")
    []
    """
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    found = [path.relative_to(folder) for path in sorted(folder.rglob("*.yaml"))]
    return [str(path) for path in found if path.parts[0] in groups or (CONF / path).is_file()]


def options(group: str) -> set[str]:
    """Names that ``group=NAME`` may choose, the user's own included.

    >>> "smollm2" in options("model")
    True
    """
    folders = [folder / group for folder in (CONF, own_conf()) if folder is not None]
    return {path.stem for folder in folders for path in folder.glob("*.yaml")}


def describe(folder: Path) -> str:
    """One line that says what the user's folder adds and replaces."""
    files = [name + (" (replaces)" if (CONF / name).is_file() else "") for name in own_files(folder)]
    return f"configuration in {folder}: {', '.join(files)}"


class _OwnConf(SearchPathPlugin):  # type: ignore[misc]
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if (folder := own_conf()) is not None:
            search_path.prepend(provider="own conf", path=f"file://{folder}", anchor="main")


def use_own_conf() -> None:
    """Let everything that Hydra composes from now on find the user's files."""
    Plugins.instance().register(_OwnConf)
