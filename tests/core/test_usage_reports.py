"""Libraries do not report to their makers that they are used."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

READ_BY = {
    "HF_HUB_DISABLE_TELEMETRY": "huggingface_hub/constants.py",
    "UNSLOTH_DISABLE_STATISTICS": "unsloth/models/_utils.py",
    "MLFLOW_DISABLE_TELEMETRY": "mlflow/environment_variables.py",
    "RAY_USAGE_STATS_ENABLED": "ray/_common/usage/usage_constants.py",
    "WANDB_ERROR_REPORTING": "wandb/env.py",
}
"""Variables and the files of installed libraries that read them; vLLM has an environment of its own."""


def _run(code: str, **variables: str) -> str:
    known = {name: value for name, value in os.environ.items() if name not in READ_BY}
    done = subprocess.run(
        [sys.executable, "-c", code], env=known | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_reports_in_trls_thread_are_off() -> None:
    code = (
        "import lmsys_unsloth; from huggingface_hub import constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    )
    assert _run(code) == "True"
    assert _run(code, HF_HUB_DISABLE_TELEMETRY="0") == "False"


@pytest.mark.parametrize(("variable", "file"), READ_BY.items())
def test_each_variable_is_set_and_known_to_its_library(variable: str, file: str) -> None:
    assert _run(f"import lmsys_unsloth, os; print(os.environ['{variable}'])") in ("1", "true", "0", "false")
    package, *rest = Path(file).parts
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    assert variable in Path(spec.origin).parent.joinpath(*rest).read_text(encoding="utf-8")
