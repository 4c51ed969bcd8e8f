"""Serve a trained model over HTTP: ``python -m lmsys_unsloth.serve run=RUN``.

Arguments are ``name=value`` in any order: ``run`` (required; a run directory, that of a cross-validation, or
an export folder), ``host`` (127.0.0.1), ``port`` (8000), ``max_pairs`` (256; pairs in a request),
``max_body_mb`` (8). Requests must carry the token of the environment variable ``LMSYS_UNSLOTH_TOKEN`` if it
is set.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

from lmsys_unsloth.cli.words import parse_words
from lmsys_unsloth.core.errors import UserError, prints_errors

TOKEN = "LMSYS_UNSLOTH_TOKEN"
"""Environment variable with the token that requests must carry."""
GRACE_SECONDS = 60
"""Seconds for which accepted requests are finished after SIGTERM."""

RULES = {
    "run": ("", ".+", "must name a run directory, a cross-validation or an export folder"),
    "host": ("127.0.0.1", r"[\w.:-]+", "must be an address"),
    "port": ("8000", r"\d{1,5}", "must be a number"),
    "max_pairs": ("256", r"[1-9]\d*", "must be a whole number above 0"),
    "max_body_mb": ("8", r"[1-9]\d*", "must be a whole number above 0"),
}
USAGE = "python -m lmsys_unsloth.serve run=RUN [host=127.0.0.1] [port=8000] [max_pairs=256] [max_body_mb=8]"


@prints_errors
def main(words: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM; 2 when something is wrong."""
    values = parse_words(words, RULES, USAGE)
    host, port = values["host"], int(values["port"])
    _require_free(host, port)
    try:
        import uvicorn

        from lmsys_unsloth.serve.app import Limit, make_app
    except ImportError as error:
        raise UserError(
            f"the server needs the package {error.name}, which is not installed.\n"
            "  Install it: pip install -r requirements/serve.txt"
        ) from None
    from lmsys_unsloth.predict.predictor import Predictor

    token = os.environ.get(TOKEN) or None
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        print(f"warning: anybody who reaches {host} can use this server; set {TOKEN}", file=sys.stderr)
    predictor = Predictor.load(values["run"])
    limit = Limit(pairs=int(values["max_pairs"]), body_bytes=int(values["max_body_mb"]) * 2**20)
    app = make_app(predictor, limit=limit, token=token)
    print(f"serving {values['run']}: http://{host}:{port}", flush=True)
    uvicorn.run(
        app, host=host, port=port, log_level="warning", server_header=False, access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )  # fmt: skip
    return 0


def _require_free(host: str, port: int) -> None:
    """Raise an error if the port is in use, before the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"host={host} port={port}: can't be used ({error}); choose another port."
            ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
