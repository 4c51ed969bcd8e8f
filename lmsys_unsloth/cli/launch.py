"""The start of a command in one process, or in each of several that a launcher started."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from lmsys_unsloth.cli import arguments
from lmsys_unsloth.cli.start.own_conf import describe, own_conf, use_own_conf
from lmsys_unsloth.cli.start.program import asks_for_sweep
from lmsys_unsloth.core import launcher, ranks
from lmsys_unsloth.core.errors import UserError


def launch(main: Callable[[], Any]) -> None:
    """Run ``main``, a command of Hydra, with the arguments of the command line.

    Of several processes only the first one prints and writes to the run directory. Hydra gives each of the
    others a folder that is removed when it ends.
    """
    with arguments.messages():
        group = launcher.join()
        use_own_conf()
        arguments.require_readable(sys.argv[1:])
        sys.argv[1:] = arguments.prepare_arguments(sys.argv[1:])
        if group.size > 1:
            _refuse_sweep(sys.argv[1:])
        if group.first and (folder := own_conf()):
            print(describe(folder), file=sys.stderr)
        if not group.first:
            _work_silently()
        main()


def _refuse_sweep(words: Sequence[str]) -> None:
    if asks_for_sweep(words):
        raise UserError(
            "a sweep (-m, cv=K, search=NAME) starts a process for each of its jobs, but several processes "
            "were started for it.\n"
            "  Leave out torchrun: each job uses one GPU. Or start each job: torchrun … train.py fold=0"
        )


def _work_silently() -> None:
    """Let this process write into a folder of its own, print nothing, and log warnings with its rank."""
    folder = tempfile.mkdtemp(prefix="lmsys-unsloth-rank-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sys.argv.append(f"hydra.run.dir={folder}")
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    warnings = logging.StreamHandler(sys.stderr)
    warnings.setLevel(logging.WARNING)
    text = f"%(asctime)s %(levelname)s rank {ranks.current().rank}: %(message)s"
    warnings.setFormatter(logging.Formatter(text))
    logging.getLogger("lmsys_unsloth").addHandler(warnings)
