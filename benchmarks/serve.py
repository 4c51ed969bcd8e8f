"""Load test of the server on this machine: concurrent clients, no answer lost or mixed up, durations.

    python benchmarks/serve.py --run RUN --clients 64 --requests 10

The model is computed in float32, so that an answer is known to be that of its own pair. Each client sends its
own pair several times; every answer is compared with that of the same pair sent alone beforehand. Then bodies
that must be refused are sent, and the server must still answer.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

ROUNDING = 1e-4
"""Largest difference of a probability, in float32, between a pair alone and in a batch."""

WORDS = ("the", "answer", "is", "four", "because", "two", "and", "make", "nobody", "doubts", "it", "least")
SHORT = b'{"prompt":"a","response_a":"b","response_b":"c"}'
HOSTILE: tuple[tuple[bytes, str], ...] = (
    (b"{", "truncated JSON"),
    (b"[" * 100_000, "deeply nested"),
    (b'{"pairs": [{"prompt": null, "response_a": "a", "response_b": "b"}]}', "null"),
    (b'{"pairs": []}', "no pairs"),
    (b'{"pairs": [' + b",".join([SHORT] * 3000) + b"]}", "3,000 pairs"),
    (b'{"pairs": [{"prompt": "' + b"x" * 20_000_000 + b'"}]}', "20 MB"),
    (b"\x00\xff" * 1000, "bytes"),
)


def serve(run: str) -> str:
    """Start the server in a thread; returns its address."""
    import uvicorn

    from lmsys_unsloth import Predictor
    from lmsys_unsloth.serve.app import make_app

    app = make_app(Predictor.load(run, "model.dtype=float32"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def pair(seed: int) -> dict[str, str]:
    """A pair of random sentences."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 60))) for _ in range(3)]
    return dict(zip(("prompt", "response_a", "response_b"), texts, strict=True))


def ask(url: str, given: dict[str, str]) -> tuple[list[float], float]:
    """Probabilities of a pair, and seconds."""
    started = time.perf_counter()
    answer = requests.post(f"{url}/v1/preferences", json={"pairs": [given]}, timeout=600)
    answer.raise_for_status()
    [found] = answer.json()["preferences"]
    return list(found.values()), time.perf_counter() - started


def load(url: str, clients: int, count: int) -> dict[str, Any]:
    """Send ``clients * count`` requests at once; compare each answer with that of the pair alone."""
    pairs = [pair(seed) for seed in range(clients)]
    alone = [ask(url, each) for each in pairs]

    def client(number: int) -> list[tuple[float, float]]:
        found = [ask(url, pairs[number]) for _ in range(count)]
        expected = alone[number][0]
        return [(max(abs(a - b) for a, b in zip(p, expected, strict=True)), s) for p, s in found]

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        answers = [answer for each in threads.map(client, range(clients)) for answer in each]
    seconds = time.perf_counter() - started
    durations = sorted(s for _, s in answers)
    return {
        "requests": clients * count,
        "answers": len(answers),
        "mixed_up": sum(distance > ROUNDING for distance, _ in answers),
        "largest_difference": max(distance for distance, _ in answers),
        "p50_seconds": statistics.median(durations),
        "p95_seconds": durations[int(0.95 * len(durations))],
        "alone_seconds": statistics.median(s for _, s in alone),
        "pairs_per_second": len(answers) / seconds,
        "alone_pairs_per_second": len(alone) / sum(s for _, s in alone),
    }


def refused(url: str) -> dict[str, int]:
    """Status of each hostile body."""
    found = {}
    for body, name in HOSTILE:
        headers = {"Content-Type": "application/json"}
        try:
            answer = requests.post(f"{url}/v1/preferences", data=body, headers=headers, timeout=60)
            found[name] = answer.status_code
        except requests.ConnectionError:
            found[name] = 0  # the connection was closed before the body was read
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--run", required=True, help="run directory or export folder")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=10, help="of each client")
    options = parser.parse_args()
    url = serve(options.run)
    measured = load(url, options.clients, options.requests)
    statuses = refused(url)
    after, _ = ask(url, pair(0))
    print(json.dumps({**measured, "hostile": statuses}, indent=2))
    good = measured["answers"] == measured["requests"] and not measured["mixed_up"]
    good &= all(400 <= status < 500 for status in statuses.values()) and len(after) == 3
    print("passed" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
