"""Probabilities of preference for a program's own prompts and responses."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.comparison import LABELS, Comparison
from lmsys_unsloth.data.form.features import form_features
from lmsys_unsloth.evaluate import adjustment, averaging
from lmsys_unsloth.evaluate.predictions import Predictions
from lmsys_unsloth.evaluate.stacking import Calibration
from lmsys_unsloth.predict.conversations import Turns, to_comparisons
from lmsys_unsloth.predict.ranking import ROUND_ROBIN, Ranking, rank
from lmsys_unsloth.predict.reward_bench import BenchmarkScore, score_reward_bench
from lmsys_unsloth.predict.scorers import Scorer, load_scorers
from lmsys_unsloth.predict.sources import Named, open_source


class Predictor:
    """Predicts which of two responses a person prefers, by one trained model or the average of several.

        from lmsys_unsloth import Predictor
        predictor = Predictor.load("runs/2026-11-23/12-00-00-llama3-v2-fold0")
        predictor.predict([{"prompt": "2 + 2?", "response_a": "4", "response_b": "5"}])

    Several threads may use one predictor; they score one after the other. Made by :meth:`load`.
    """

    def __init__(self, scorers: Sequence[Scorer], config: Config, calibration: Calibration | None) -> None:
        self._scorers, self.config, self._calibration = scorers, config, calibration
        self._lock = threading.Lock()

    @classmethod
    def load(cls, source: Named | Sequence[Named], *changes: str) -> Predictor:
        """Load trained models.

        Args:
            source: directory of a run; of a cross-validation or an average (``eval.py runs=[…]``), whose
                models are averaged; several run directories; or a folder that
                ``python -m lmsys_unsloth.export`` wrote.
            changes: single values that replace those of the stored configuration, as on the command line:
                ``"eval.swap=average"``, ``"eval.calibrate=temperature"``, ``"model.resident=4bit"``.

        Raises:
            UserError: a folder is none of these, a run is not finished, or a calibration that the
                configuration asks for is missing.
        """
        found = open_source(source, changes)
        members = [
            dataclasses.replace(m, config=m.config.model_copy(update={"eval": found.config.eval}))
            for m in found.members
        ]
        return cls(load_scorers(members), found.config, found.calibration)

    def predict(self, rows: Iterable[Mapping[str, Any]]) -> NDArray[np.float32]:
        """Predict how likely each outcome is.

        Rows are computed in batches of ``eval.tokens_per_batch`` tokens, too long ones shortened as in
        training. Both orders of the responses are averaged if ``eval.swap`` says so, and the probabilities
        calibrated or stacked if ``eval.calibrate`` or ``eval.stack`` does.

        Args:
            rows: mappings with ``prompt``, ``response_a`` and ``response_b``; each is a text, the texts of
                all turns, or chat messages
                (:func:`~lmsys_unsloth.predict.conversations.to_comparisons`).

        Returns:
            Probabilities, float32 ``[rows, 3]``: A is preferred, B is preferred, tie. Each row sums to 1.

        Raises:
            UserError: lists the rows that can't be compared.
        """
        return self.predict_comparisons(to_comparisons(rows))

    def predict_comparisons(self, rows: Sequence[Comparison]) -> NDArray[np.float32]:
        """:meth:`predict` for rows as the project's readers return them; labels are not read."""
        if not rows:
            return np.empty((0, len(LABELS)), dtype=np.float32)
        # Ids of a program's rows may repeat; averaging matches predictions by id.
        numbered = [dataclasses.replace(row, id=str(n), label=None) for n, row in enumerate(rows)]
        with self._lock:
            parts = [scorer.score(numbered) for scorer in self._scorers]
        return np.asarray(self._adjusted(parts, numbered), dtype=np.float32)

    def _adjusted(self, parts: Sequence[Predictions], rows: Sequence[Comparison]) -> NDArray[Any]:
        if self._calibration is None:
            return averaging.average(parts).probabilities
        candidates = adjustment.apply(self._calibration, parts, form_features(rows))
        return candidates[adjustment.requested_method(self.config.eval)]

    def rank(self, prompt: Turns, responses: Sequence[Turns], *, round_robin: int = ROUND_ROBIN) -> Ranking:
        """Rank responses to one prompt by predictions for pairs of them, for best-of-N sampling.

        Args:
            prompt: text, turns or messages as in :meth:`predict`.
            responses: at least one.
            round_robin: up to this many responses, all pairs are compared; of more, each is compared in a
                few rounds with others of similar strength
                (:mod:`~lmsys_unsloth.predict.ranking`).

        Returns:
            Order, scores and the number of comparisons.

        Raises:
            UserError: there is no response, or one can't be compared.
        """
        if not responses:
            raise UserError("rank: no responses; give at least one.")

        def compare(pairs: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
            return self.predict(
                {"prompt": prompt, "response_a": responses[a], "response_b": responses[b]} for a, b in pairs
            )

        return rank(len(responses), compare, round_robin=round_robin)

    def score_reward_bench(
        self, file: str | Path, *, both_orders: bool = True, split: str = "train"
    ) -> BenchmarkScore:
        """Score a file of pairs of a chosen and a rejected response, such as RewardBench.

        Args:
            file: CSV, Parquet or JSONL with ``prompt``, ``chosen`` and ``rejected``, and optionally
                ``subset``; or ``hf:owner/name``. Chosen and rejected are texts, or whole conversations as
                messages (then ``prompt`` may be missing).
            both_orders: average both orders of each pair; otherwise the chosen response is A in every
                second row.
            split: of a Hugging Face dataset.

        Returns:
            Share of pairs in which the chosen response is the more probable one, overall and by subset.

        Raises:
            UserError: the file can't be read, or lacks a column.
        """
        return score_reward_bench(str(file), self.predict, both_orders=both_orders, split=split)
