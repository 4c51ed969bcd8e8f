"""The import of unsloth, which must come before those of transformers, trl and peft: it patches them."""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

log = logging.getLogger(__name__)


def import_unsloth() -> Any:
    """Import unsloth and return the module; the first import takes 7 to 30 s.

    unsloth writes Python code that it then imports. It gets a private folder for that, so that no other user
    can place code there and two runs never share it.
    """
    if "unsloth" not in sys.modules:
        folder = tempfile.mkdtemp(prefix="unsloth-compiled-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["UNSLOTH_COMPILE_LOCATION"] = folder
        log.info("importing unsloth")
        for verbose in ("bitsandbytes", "datasets"):
            logging.getLogger(verbose).setLevel(logging.ERROR)
    with output_to_log():
        import unsloth
        from transformers.utils import logging as transformers_logging
    transformers_logging.disable_progress_bar()
    return unsloth


@contextlib.contextmanager
def output_to_log() -> Iterator[None]:
    """Redirect what a library prints to the debug log."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stdout(captured):
            yield
    finally:
        for line in filter(None, map(str.strip, captured.getvalue().splitlines())):
            log.debug("%s", line)
