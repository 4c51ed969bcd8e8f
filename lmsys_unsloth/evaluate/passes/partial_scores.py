"""Logits of the rows scored so far, on disk, so that an interrupted scoring goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.form.offset import OFFSET_FILE
from lmsys_unsloth.prompting.encoding import EncodedRow

Order = Literal["forward", "swapped"]
"""Order of the two responses in which a row is scored."""


class PartialScores:
    """Where the logits of one model, for one list of rows, are kept until the predictions are written.

    The names of the files contain a hash of everything that the logits depend on: the ids of the rows in
    their order, the settings of model, prompt, head and scoring, and the trained weights. So what another
    command left in the folder is never used.

    Args:
        output: run directory of the command.
        config: settings of the scoring.
        weights: folder of the trained weights; None for an untrained model.
        rows: all rows to score.
    """

    def __init__(self, output: Run, config: Config, weights: Path | None, rows: Sequence[EncodedRow]) -> None:
        self._folder = output.partial_scores
        # The first rank wrote the weights, so another one may not see them yet.
        self._key = ranks.current().share(_key(config, weights, rows) if ranks.current().first else "")

    def opened(self, order: Order) -> ScoredBatches:
        """Read the logits of one order that an interrupted command left, and go on writing them."""
        return ScoredBatches(self._folder, f"{order}-{self._key}")


class ScoredBatches:
    """Logits by row number; one line of JSON for each batch, each rank in a file of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        own = folder / f"{name}-{ranks.current().rank}.jsonl"
        self._known: dict[int, list[float]] = {}
        for file in sorted(folder.glob(f"{name}-*.jsonl")):
            complete = self._read(file)
            if file == own:
                with file.open("r+b") as handle:  # a kill may have cut the last line
                    handle.truncate(complete)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = own.open("ab")
        except OSError as error:
            raise UserError(f"{own}: {error.strerror}; free space, or make the folder writable.") from None

    def __enter__(self) -> ScoredBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def restore(self, numbers: Sequence[int], logits: Tensor) -> bool:
        """Fill ``logits`` ``[rows, answers]``, if all these rows were scored before."""
        if not all(number in self._known for number in numbers):
            return False
        logits.copy_(logits.new_tensor([self._known[number] for number in numbers]))
        return True

    def append(self, numbers: Sequence[int], logits: Tensor) -> None:
        """Write the logits ``[rows, answers]`` of a batch; float32 survives the JSON exactly."""
        line = json.dumps({"rows": list(numbers), "logits": logits.tolist()}) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._file.name}: {error.strerror}; free space and resume the command."
            ) from None

    def _read(self, file: Path) -> int:
        """Read all complete lines; returns their length in bytes."""
        complete = 0
        with file.open("rb") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                try:
                    batch = json.loads(line)
                except ValueError:  # zeros, as a crash of the machine may leave them
                    break
                self._known.update(zip(batch["rows"], batch["logits"], strict=True))
                complete += len(line)
        return complete


def delete_partial_scores(output: Run) -> None:
    """Delete what is not needed once the predictions are written."""
    shutil.rmtree(output.partial_scores, ignore_errors=True)


def _key(config: Config, weights: Path | None, rows: Sequence[EncodedRow]) -> str:
    settings = config.model_dump(mode="json", include={"model", "prompt", "head", "engine"})
    settings |= {"tokens_per_batch": config.eval.tokens_per_batch, "fast": config.train.fast}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    trained = [] if weights is None else [*weights.glob("*.safetensors"), *weights.glob(OFFSET_FILE)]
    for file in sorted(trained):
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    for row in rows:
        digest.update(len(row.input_ids).to_bytes(8, "little"))
        digest.update(row.input_ids.tobytes())
    return digest.hexdigest()[:32]
