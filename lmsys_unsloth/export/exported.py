"""What an export folder holds, as its ``export.json`` records it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lmsys_unsloth.core.files import write_json
from lmsys_unsloth.evaluate.differences import Agreement
from lmsys_unsloth.export.merging import Base
from lmsys_unsloth.predict.sources import EXPORT


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported model."""

    format: str
    runs: list[str]
    """Names of the runs; several were averaged in weight space."""
    base: Base
    dtype: str | None
    settings: dict[str, Any]
    """Configuration with which the exported model is scored."""
    calibration: dict[str, Any] | None
    agreement: Agreement | None

    def write(self, folder: Path) -> None:
        """Write ``export.json``."""
        write_json(folder / EXPORT, dataclasses.asdict(self))
