"""The HTTP interface of a predictor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, ConfigDict, Field

from lmsys_unsloth import __version__
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import Comparison
from lmsys_unsloth.predict.conversations import to_comparisons
from lmsys_unsloth.predict.predictor import Predictor
from lmsys_unsloth.serve.batching import Batcher, Busy
from lmsys_unsloth.serve.limits import Limits

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'none'"
"""Content security policy of the page."""


@dataclass(frozen=True)
class Limit:
    """What one request may hold."""

    pairs: int = 256
    responses: int = 64
    """Responses of one ranking."""
    characters: int = 200_000
    """Characters of one prompt or response, all turns together."""
    body_bytes: int = 8 * 2**20


class Message(BaseModel):
    """A chat message."""

    model_config = ConfigDict(extra="ignore")
    role: str
    content: str | list[dict[str, Any]]


Text = str | list[str] | list[Message]


class Pair(BaseModel):
    """Two responses to one prompt; each a text, the texts of all turns, or chat messages."""

    model_config = ConfigDict(extra="forbid")
    prompt: Text
    response_a: Text
    response_b: Text


class Pairs(BaseModel):
    """What is to be compared."""

    model_config = ConfigDict(extra="forbid")
    pairs: list[Pair] = Field(min_length=1)


class Preference(BaseModel):
    """Probabilities that a person prefers A, prefers B, or calls it a tie; their sum is 1."""

    a: float
    b: float
    tie: float


class Preferences(BaseModel):
    """Probabilities in the order of the pairs."""

    preferences: list[Preference]


class RankRequest(BaseModel):
    """Several responses to one prompt."""

    model_config = ConfigDict(extra="forbid")
    prompt: Text
    responses: list[Text] = Field(min_length=1)


class Ranked(BaseModel):
    """Positions of the responses, the best first, and their expected share of points against the others."""

    order: list[int]
    scores: list[float]
    comparisons: int


class Metrics:
    """What ``/metrics`` reports."""

    def __init__(self, batcher: Batcher) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lmsys_unsloth_requests_total", "Requests", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "lmsys_unsloth_request_seconds", "Duration of requests", ["path"], registry=self.registry
        )
        self.pairs = Counter("lmsys_unsloth_pairs_total", "Pairs scored", registry=self.registry)
        waiting = Gauge("lmsys_unsloth_waiting_pairs", "Pairs that wait", registry=self.registry)
        waiting.set_function(lambda: batcher.waiting)


def make_app(predictor: Predictor, *, limit: Limit | None = None, token: str | None = None) -> FastAPI:
    """The application; it scores with one thread, whose batches hold the rows of concurrent requests.

    Args:
        predictor: scores rows.
        limit: what one request may hold.
        token: bearer token that requests must carry; None: none.
    """
    allowed = limit or Limit()
    batcher = Batcher(predictor.predict_comparisons)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)

    app = FastAPI(
        title="lmsys_unsloth", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Probabilities that a person prefers one of two chatbot answers.",
    )  # fmt: skip
    metrics = Metrics(batcher)
    _add_errors(app)
    _add_metrics(app, metrics)
    _add_page(app)
    _add_predictions(app, predictor, batcher, allowed, metrics)
    app.add_middleware(Limits, max_bytes=allowed.body_bytes, token=token)  # type: ignore[arg-type]
    return app


def _add_metrics(app: FastAPI, metrics: Metrics) -> None:
    @app.middleware("http")
    async def measured(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        response = await call_next(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")  # not the address itself: anybody could make new ones
        metrics.requests.labels(path, str(response.status_code)).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - started)
        return response

    @app.get("/metrics", include_in_schema=False)
    async def report() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    for path, name, kind in (
        ("/", "page.html", "text/html"), ("/page.js", "page.js", "text/javascript"),
        ("/page.css", "page.css", "text/css"),
    ):  # fmt: skip
        app.get(path, include_in_schema=False)(_static(name, kind))


def _add_predictions(
    app: FastAPI, predictor: Predictor, batcher: Batcher, allowed: Limit, metrics: Metrics
) -> None:
    @app.post("/v1/preferences")
    async def preferences(body: Pairs) -> Preferences:
        """Predict which response of each pair a person prefers."""
        _require(len(body.pairs) <= allowed.pairs, f"at most {allowed.pairs} pairs in a request")
        rows = [pair.model_dump() for pair in body.pairs]
        for row in rows:
            _require_short(row.values(), allowed.characters)
        found = await asyncio.wrap_future(_submit(batcher, to_comparisons(rows)))
        metrics.pairs.inc(len(rows))
        return Preferences(preferences=[Preference(a=a, b=b, tie=tie) for a, b, tie in found.tolist()])

    @app.post("/v1/rank")
    async def rank(body: RankRequest) -> Ranked:
        """Rank responses to one prompt, for best-of-N sampling."""
        _require(len(body.responses) <= allowed.responses, f"at most {allowed.responses} responses")
        given = body.model_dump()
        _require_short([given["prompt"], *given["responses"]], allowed.characters)
        found = await run_in_threadpool(predictor.rank, given["prompt"], given["responses"])
        metrics.pairs.inc(found.comparisons)
        return Ranked(order=found.order, scores=found.scores.tolist(), comparisons=found.comparisons)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether the server answers, and what it serves."""
        config = predictor.config
        return {
            "status": "ok",
            "version": __version__,
            "model": config.model.name,
            "prompt": config.prompt.name,
        }


def _submit(batcher: Batcher, rows: Sequence[Comparison]) -> Any:
    try:
        return batcher.submit(rows)
    except Busy:
        raise HTTPException(503, "too many rows wait; try again", headers={"Retry-After": "5"}) from None


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise HTTPException(422, rule)


def _require_short(texts: Any, limit: int) -> None:
    _require(all(_characters(text) <= limit for text in texts), f"at most {limit:,} characters in one text")


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return sum(_characters(each) for each in (value.values() if isinstance(value, dict) else value))


def _static(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    content = files("lmsys_unsloth.serve").joinpath("static", name).read_text(encoding="utf-8")

    async def get() -> Response:
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(content, media_type=kind, headers=headers)

    return get


def _add_errors(app: FastAPI) -> None:
    """Answers to bad requests: what is wrong and where, without repeating what was sent."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()[:10]]
        return JSONResponse({"detail": problems}, status_code=422)

    @app.exception_handler(UserError)
    async def refused(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error).splitlines()}, status_code=422)
