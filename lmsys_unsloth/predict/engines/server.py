"""``engine=openai``: a server with OpenAI's completions interface that returns log-probabilities."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
import torch
from requests.adapters import HTTPAdapter
from torch import Tensor
from urllib3.util import Retry

from lmsys_unsloth.config.engine_schema import EngineConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.prompting.encoding import RowEncoder

log = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
"""Environment variable with the key for the server, if it needs one."""
BACKOFF = 0.5
"""Seconds before the second repetition of a request; doubled each time. ``Retry-After`` takes precedence."""


class Server:
    """Requests one token for each row, and reads the answers among its most probable candidates.

    An answer that is not among them gets the probability of the least probable one, which is an upper bound.

    Args:
        settings: the ``engine`` section.
        encoder: encodes the rows.

    Raises:
        UserError: the server does not answer, or names no model.
    """

    def __init__(self, settings: EngineConfig, encoder: RowEncoder) -> None:
        self.settings, self.encoder = settings, encoder
        self.url = (settings.url or "").rstrip("/")
        self.answers = [ids[0] for ids in encoder.answer_ids]
        self.texts = [encoder.vocabulary.decode([answer]) for answer in self.answers]
        self._session = requests.Session()
        retry = Retry(
            settings.retries, backoff_factor=BACKOFF, status_forcelist=(429, *range(500, 600)),
            allowed_methods=None, raise_on_status=False,
        )  # fmt: skip
        for scheme in ("http://", "https://"):
            adapter = HTTPAdapter(max_retries=retry, pool_maxsize=settings.concurrency)
            self._session.mount(scheme, adapter)
        if key := os.environ.get(KEY):
            self._session.headers["Authorization"] = f"Bearer {key}"
        self.model = settings.model or self._first_model()
        self._bounded = 0

    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Compute log-probabilities; see :class:`~lmsys_unsloth.predict.engines.engine.Engine`."""
        with ThreadPoolExecutor(self.settings.concurrency) as threads:
            candidates = list(threads.map(self._candidates, rows))
        found = [self._answers_among(each) for each in candidates]
        if all(value is None for row in found for value in row):
            self._explain_absence(candidates)
        if bounded := sum(None in row for row in found):
            if not self._bounded:
                log.warning(
                    "an answer is not among the %d most probable tokens of a row; it gets the probability of "
                    "the least probable one of them, an upper bound (engine.top)", self.settings.top,
                )  # fmt: skip
            self._bounded += bounded
        floors = [min(each.values()) for each in candidates]
        return torch.tensor(
            [[floor if v is None else v for v in row] for row, floor in zip(found, floors, strict=True)]
        )

    def _first_model(self) -> str:
        listed = self._request("GET", "models").get("data")
        if not isinstance(listed, list) or not listed or "id" not in listed[0]:
            raise UserError(f"{self.url}/models: lists no model; name it: engine.model=NAME")
        return str(listed[0]["id"])

    def _candidates(self, row: Sequence[int]) -> dict[str, float]:
        """Log-probabilities of the most probable tokens after a row, by their text or ``token_id:NUMBER``."""
        answer = self._request(
            "POST", "completions",
            {
                "model": self.model, "prompt": self._prompt(row), "max_tokens": 1, "temperature": 1.0,
                "logprobs": self.settings.top,
            },
        )  # fmt: skip
        try:
            returned = answer["choices"][0]["logprobs"]
            tokens = returned["top_logprobs"][0] if returned else None
        except (KeyError, IndexError, TypeError):
            tokens = None
        if not isinstance(tokens, Mapping) or not tokens:
            raise UserError(
                f"{self.url}: returns no log-probabilities, which the answers are read from.\n  Start the "
                "server so that it does (llama-cpp-python: --logits_all true), or use another one."
            )
        if len(tokens) < self.settings.top:
            raise UserError(
                f"{self.url}: returned {len(tokens)} tokens, but engine.top = {self.settings.top}.\n"
                f"  Set engine.top={max(3, len(tokens))}, or raise the server's limit (vLLM: --max-logprobs)."
            )
        return {str(token): float(value) for token, value in tokens.items()}

    def _prompt(self, row: Sequence[int]) -> list[int] | str:
        """The row as the server is sent it; in a text, the server adds the BOS itself."""
        if self.settings.prompt == "ids":
            return list(row)
        added = len(self.encoder.vocabulary.bos)
        return self.encoder.vocabulary.decode(row[added:])

    def _answers_among(self, candidates: Mapping[str, float]) -> list[float | None]:
        pairs = zip(self.answers, self.texts, strict=True)
        found = [candidates.get(f"token_id:{token}", candidates.get(text)) for token, text in pairs]
        return [None if value is None or not math.isfinite(value) else value for value in found]

    def _explain_absence(self, candidates: Sequence[Mapping[str, float]]) -> None:
        """Raise an error: no answer is among the candidates of any row."""
        seen = {token for each in candidates for token in each}
        begun = [t for t in self.texts if any(t.startswith(s) and s.strip() for s in seen)]
        if begun:
            raise UserError(
                f"{self.url}: the answer {begun[0]!r} is several tokens there, of which only the first is "
                "among the most probable ones; serve the model with the tokenizer of the run."
            )
        most = max(candidates[0], key=candidates[0].__getitem__)
        raise UserError(
            f"{self.url}: none of the answers {self.texts} is among the {self.settings.top} most probable "
            f"tokens (the first row's is {most!r}); is {self.model} the exported run?"
        )

    def _request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        address = f"{self.url}/{path}"
        try:
            response = self._session.request(method, address, json=body, timeout=self.settings.timeout)
        except requests.RequestException as error:
            raise UserError(
                f"{address}: no answer after {self.settings.retries} repetitions ({type(error).__name__}).\n"
                "  Start the server, check engine.url, or raise engine.timeout."
            ) from None
        if not response.ok:
            remedy = ""
            if "prompt" in response.text and self.settings.prompt == "ids":
                remedy = "\n  If the server does not take token ids, set engine.prompt=text."
            raise UserError(f"{address}: status {response.status_code}: {response.text[:200]}{remedy}")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise UserError(f"{address}: does not answer in JSON; does engine.url end in /v1?")
        return answer
