"""The server: what it answers, how it batches, and what it refuses. A stand-in for the model scores by
length."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.predict.conversations import to_comparisons
from lmsys_unsloth.predict.ranking import rank
from lmsys_unsloth.serve.__main__ import main
from lmsys_unsloth.serve.app import Limit, make_app
from lmsys_unsloth.serve.batching import Batcher, Busy

PAIR = {"prompt": "2 + 2?", "response_a": "4", "response_b": "five"}


LONG = b'{"pairs": [{"prompt": "' + b"a" * 101 + b'", "response_a": "b", "response_b": "c"}]}'


class ByLength:
    """Prefers the longer response; refuses rows that say so."""

    config = SimpleNamespace(model=SimpleNamespace(name="length"), prompt=SimpleNamespace(name="v1"))

    def __init__(self, delay: float = 0.0) -> None:
        self.delay, self.batches = delay, list[int]()

    def predict_comparisons(self, rows: Sequence[Comparison]) -> NDArray[np.float32]:
        self.batches.append(len(rows))
        time.sleep(self.delay)
        if any("unusable" in row.prompts[0] for row in rows):
            raise UserError("a row can't be scored")
        return np.array([self.of(row.responses_a[-1], row.responses_b[-1]) for row in rows], dtype=np.float32)

    @staticmethod
    def of(a: str, b: str) -> tuple[float, float, float]:
        total = len(a) + len(b) + 1
        return len(a) / total, len(b) / total, 1 / total

    def rank(self, prompt: Any, responses: Sequence[Any]) -> Any:
        def compare(pairs: Any) -> NDArray[np.float32]:
            return self.predict_comparisons(
                to_comparisons(
                    {"prompt": prompt, "response_a": responses[a], "response_b": responses[b]}
                    for a, b in pairs
                )
            )

        return rank(len(responses), compare)


def client(model: Any = None, **options: Any) -> TestClient:
    return TestClient(make_app(model or ByLength(), **options), raise_server_exceptions=False)


def test_pairs_in_every_form_get_probabilities_in_their_order() -> None:
    messages = {"prompt": [{"role": "user", "content": "Hi"}], "response_a": ["long"], "response_b": "no"}
    with client() as server:
        answer = server.post("/v1/preferences", json={"pairs": [PAIR, messages]})
        assert answer.status_code == 200
        found = [list(p.values()) for p in answer.json()["preferences"]]
        np.testing.assert_allclose(found, [ByLength.of("4", "five"), ByLength.of("long", "no")], atol=1e-6)
        ranked = server.post("/v1/rank", json={"prompt": "Hi", "responses": ["ab", "abcdef", "a"]}).json()
        assert ranked["order"] == [1, 0, 2] and ranked["comparisons"] == 3
        assert server.get("/healthz").json()["model"] == "length"
        assert "/v1/rank" in server.get("/openapi.json").json()["paths"]
        text = server.get("/metrics").text
        assert 'requests_total{path="/v1/preferences",status="200"} 1.0' in text
        assert "lmsys_unsloth_pairs_total 5.0" in text


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 422, "JSON"),
        (b"[]", 422, "dictionary"),
        (b'{"pairs": []}', 422, "at least 1"),
        (b'{"pairs": [{"prompt": "a", "response_a": "b"}]}', 422, "response_b"),
        (b'{"pairs": [{"prompt": 1, "response_a": "b", "response_b": "c"}]}', 422, "prompt"),
        (b'{"pairs": [{"prompt": null, "response_a": "b", "response_b": "c"}]}', 422, "prompt"),
        (b'{"pairs": [{"prompt": ["a", "b"], "response_a": "b", "response_b": "c"}]}', 422, "counts differ"),
        (b'{"pairs": [{"prompt": "unusable", "response_a": "b", "response_b": "c"}]}', 422, "be scored"),
        (b'{"pairs": [{"prompt": "a", "response_a": "b", "response_b": "c", "x": 1}]}', 422, "not permitted"),
        (LONG, 422, "100 characters"),
        (b'{"pairs": [' + b",".join([json.dumps(PAIR).encode()] * 4) + b"]}", 422, "at most 3 pairs"),
        (b" " * 5000 + b"{}", 413, "larger than 4,096"),
        (b"\xff\xfe", 400, ""),
    ],
)  # fmt: skip
def test_hostile_bodies_get_an_answer_that_does_not_repeat_them(
    body: bytes, status: int, message: str
) -> None:
    limit = Limit(pairs=3, characters=100, body_bytes=4096)
    with client(limit=limit) as server:
        answer = server.post("/v1/preferences", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (status, 422) and message in answer.text and len(answer.content) < 600
        assert server.post("/v1/preferences", json={"pairs": [PAIR]}).status_code == 200


def test_odd_characters_are_scored() -> None:
    body = b'{"pairs": [{"prompt": "\\ud800 \\u0000 <|eot_id|>", "response_a": "b", "response_b": "<b>"}]}'
    with client() as server:
        answer = server.post("/v1/preferences", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text


def test_a_body_without_a_length_is_limited_too() -> None:
    def parts() -> Any:
        for _ in range(100):
            yield b" " * 100

    with client(limit=Limit(body_bytes=4096)) as server:
        answer = server.post("/v1/preferences", content=parts(), headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 413)


def test_a_token_is_needed_where_one_is_set() -> None:
    with client(token="secret") as server:
        assert server.post("/v1/preferences", json={"pairs": [PAIR]}).status_code == 401
        assert server.get("/metrics", headers={"Authorization": "Bearer secre"}).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert server.post("/v1/preferences", json={"pairs": [PAIR]}, headers=headers).status_code == 200
        assert server.get("/healthz").status_code == 200 and server.get("/").status_code == 200


def test_the_page_loads_nothing_from_elsewhere() -> None:
    with client() as server:
        page = server.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for text in (page.text, server.get("/page.js").text, server.get("/page.css").text):
            assert "//" not in text.replace("http://www.w3.org", "") and "innerHTML" not in text


def row(text: str) -> Comparison:
    return Comparison(text, (text,), (text,), ("b",))


def test_concurrent_requests_are_scored_together_and_not_mixed_up() -> None:
    model = ByLength(delay=0.02)
    batcher = Batcher(model.predict_comparisons, rows_per_batch=16)
    texts = ["x" * n for n in range(1, 65)]
    with ThreadPoolExecutor(64) as threads:
        found = list(threads.map(lambda text: batcher.submit([row(text)]).result()[0], texts))
    np.testing.assert_allclose(found, [ByLength.of(text, "b") for text in texts], atol=1e-6)
    assert len(model.batches) < 64 and max(model.batches) <= 16
    batcher.close()


def test_one_bad_request_does_not_fail_the_others() -> None:
    model = ByLength(delay=0.05)
    batcher = Batcher(model.predict_comparisons)
    first = batcher.submit([row("a")])  # the next two wait while it is scored
    good, bad = batcher.submit([row("ab")]), batcher.submit([row("unusable")])
    np.testing.assert_allclose(good.result()[0], ByLength.of("ab", "b"), atol=1e-6)
    with pytest.raises(UserError, match="can't be scored"):
        bad.result()
    first.result()
    batcher.close()


def test_too_many_waiting_rows_are_refused_and_accepted_ones_are_finished() -> None:
    model = ByLength(delay=0.1)
    batcher = Batcher(model.predict_comparisons, rows_per_batch=1, max_waiting=2)
    accepted = []
    with pytest.raises(Busy):
        for n in range(50):
            accepted.append(batcher.submit([row("x" * (n + 1))]))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    assert all(len(future.result()) == 1 for future in accepted)
    closing.join()
    with pytest.raises(Busy):
        batcher.submit([row("late")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=nothing", "port=0"], "no such run directory"),
        (["port=0"], "run=: must name"),
        (["run=x", "port=high"], "port=high: must be a number"),
        (["run=x", "port=99999"], "choose another port"),
    ],
)
def test_mistakes_end_the_command(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["run=x", f"port={taken.getsockname()[1]}"]) == 2
    assert "in use" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_server_answers_and_stops_on_sigterm_without_logging_prompts(folder: Path) -> None:
    import requests

    from lmsys_unsloth import Predictor

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "lmsys_unsloth.serve", f"run={folder / 'fold0'}", f"port={port}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "LMSYS_UNSLOTH_TOKEN": "t"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("serving"):
                break
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                requests.get(f"{url}/healthz", timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.1)
        answer = requests.post(
            f"{url}/v1/preferences", json={"pairs": [PAIR]}, headers={"Authorization": "Bearer t"}, timeout=60
        )
        expected = Predictor.load(folder / "fold0").predict([PAIR])
        np.testing.assert_allclose([list(answer.json()["preferences"][0].values())], expected, atol=1e-5)
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    assert "2 + 2" not in rest and "Traceback" not in rest, rest


@pytest.mark.slow
def test_the_page_shows_the_probabilities_as_bars_in_a_browser() -> None:
    browser = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("needs chromium or google-chrome")
    import uvicorn

    app = make_app(ByLength())  # type: ignore[arg-type]

    @app.get("/filled")
    async def filled() -> Any:
        """The page, which fills itself in and sends."""
        from fastapi.responses import HTMLResponse

        page = client(ByLength()).get("/").text
        script = "".join(f"document.getElementById('{k}').value='{v}';" for k, v in
                         (("prompt", "Hi"), ("a", "abc"), ("b", "<b>x</b>")))  # fmt: skip
        send = "document.getElementById('form').requestSubmit();"
        return HTMLResponse(page.replace("</body>", f"<script>{script}{send}</script></body>"))

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom",
         f"http://127.0.0.1:{port}/filled"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    server.should_exit = True
    thread.join(timeout=20)
    assert f"{100 * 3 / 12:.1f}%" in done.stdout and 'id="bar-a" style="width: 25%' in done.stdout, (
        done.stdout
    )


def test_a_missing_server_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmsys_unsloth.serve.__main__ import main

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(["run=RUN", f"port={port}"]) == 2
    assert "needs the package uvicorn, which is not installed" in capsys.readouterr().err
