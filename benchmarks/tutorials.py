"""Execute the notebooks in docs/tutorials again and store their outputs.

    python benchmarks/tutorials.py [NAME …]

Each runs in an empty folder with the installed command, for some minutes on two CPU cores. A cell that fails
stops it, and the notebook stays as it was.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "tutorials"

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours and movements of the cursor."""

_PROGRESS = re.compile(r"^(\d{4}-\d\d-\d\d [\d:,]+ INFO .*|\[IPKernelApp\].*|.*━.*)$", re.MULTILINE)
"""Lines that tell how far something is."""


def execute(notebook: Path) -> None:
    """Run a notebook in a temporary folder, and replace its outputs.

    Raises:
        CellExecutionError: a cell raised an error.
    """
    book = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            book, timeout=900, kernel_name="python3", coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()  # fmt: skip
        for cell in book.cells:
            cell.metadata.pop("execution", None)  # times
            for output in cell.get("outputs", []):
                _clean(output, folder)
    nbformat.write(book, notebook)


def _clean(output: Any, folder: str) -> None:
    """Remove noise and the temporary folder from an output, and tables in HTML, which its text repeats."""
    if "text" in output:
        text = output["text"].replace("\r\n", "\n").replace("\r", "\n").replace(f"{folder}/", "")
        text = _PROGRESS.sub("", _ESCAPE.sub("", text)).replace(folder, ".")
        output["text"] = re.sub(r"\n\s*\n(\s*\n)+", "\n\n", text).strip("\n") + "\n"
    output.get("data", {}).pop("text/html", None)


def main(names: Sequence[str]) -> int:
    """Execute the named notebooks, or all of them."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ |= {"COLUMNS": "100", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    for notebook in sorted(FOLDER.glob("*.ipynb")):
        if not names or notebook.stem in names:
            execute(notebook)
            print(f"executed: {notebook.relative_to(ROOT)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
