"""A file for bug reports: versions, hardware and the numbers of a run, without private data.

Never included: rows, texts, ids, predictions, weights, values of environment variables that are not listed
here, names of files and folders, of users and of this machine.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import platform
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lmsys_unsloth.cli.check import Check
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.files import replacing

_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_COMPILE_DISABLE", "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA", "WORLD_SIZE",
)  # fmt: skip
_NUMBERS = ("training.json", "env.json")
"""Files of a run that hold numbers, versions and hardware."""

_PRIVATE_SECTIONS = ("logger",)
_PRIVATE_KEYS = {
    "path", "extra", "fold_file", "init_from", "file", "group_by", "soft_labels", "system", "body",
}  # fmt: skip
_LOG_LINES = 400

_PATTERNS = {
    r"(?i)\b(?:hf|sk|ghp|gho|glpat|xox[a-z])[-_][A-Za-z0-9_-]{8,}": "<key>",
    r"\b[0-9a-fA-F]{32,}\b": "<hash>",
    r"[\w.+-]+@[\w-]+\.[\w.]+": "<address>",
    r"\b\w+://[^\s'\"]+": "<address>",
    r"(?<![\w.])~?(?:/[\w.@+-]+(?: [\w.@+-]+(?=/))*)+/?": "<path>",
    r"\b[\w./-]+\.(csv|parquet|jsonl|ndjson|safetensors|gguf|gz)\b": r"<file>.\1",
}
"""What is replaced in texts."""


def redact(text: str) -> str:
    """Replace keys, hashes, addresses, paths, names of data files, of the user and of this machine.

    >>> redact("reading /home/me/secret.csv with hf_abcdefghijk, see train-v2.parquet")
    'reading <path> with <key>, see <file>.parquet'
    """
    for pattern, replacement in _PATTERNS.items():
        text = re.sub(pattern, replacement, text)
    for name in {_user(), platform.node()} - {"", "root", "localhost"}:
        text = re.sub(rf"\b{re.escape(name)}\b", "<name>", text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return ""


def write_bundle(out: Path, checks: Sequence[Check], run: Run | None) -> list[str]:
    """Write the archive; returns the names of its files.

    Args:
        out: the file to write.
        checks: of this machine.
        run: a run that the report is about.
    """
    files = {
        "doctor.txt": "\n".join(f"{c.verdict:7} {c.name}: {c.value} {c.remedy}" for c in checks),
        "packages.txt": "\n".join(sorted(_installed())),
        "variables.txt": "\n".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ),
    }
    if run is not None:
        files |= _of_run(run)
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, redact(text) if name != "packages.txt" else text)
    return list(files)


def _installed() -> set[str]:
    return {f"{found.name}=={found.version}" for found in importlib.metadata.distributions()}


def _of_run(run: Run) -> dict[str, str]:
    """Configuration, numbers and the end of the log of a run."""
    settings = {key: value for key, value in run.settings().items() if key not in _PRIVATE_SECTIONS}
    files = {"config.yaml": yaml.safe_dump(_without_names(settings), sort_keys=False)}
    for name in _NUMBERS:
        if (file := run.path / name).is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            found.pop("command", None)
            files[name] = json.dumps(found, indent=2)
    for log in sorted(run.path.glob("*.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        files[log.name] = "\n".join(line for line in lines if not re.search(r"\bids?\b", line))
    return files


def _without_names(value: Any, key: str = "") -> Any:
    """A configuration without the user's file names, columns and texts of templates."""
    if isinstance(value, dict):
        return {name: _without_names(inside, name) for name, inside in value.items()}
    if key not in _PRIVATE_KEYS or value is None or isinstance(value, bool):
        return value
    return "<not included>" if value else value
