"""Experiment tracking with TensorBoard and MLflow, under the same names as with wandb."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsys_unsloth.config.parsing import Config
from lmsys_unsloth.config.run_directory import Run
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.files import write_text
from lmsys_unsloth.report.flattening import flatten, numbers
from lmsys_unsloth.report.results import Outcome

LONGEST = 500
"""Largest length of a parameter's value in MLflow; longer ones are cut."""


class TensorBoardTracker:
    """Writes event files to ``RUN/tensorboard`` (``logger=tensorboard``)."""

    def __init__(self, config: Config, run: Run) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self.writer: Any = SummaryWriter(str(run.tensorboard))  # type: ignore[no-untyped-call]
        text = run.config.read_text(encoding="utf-8") if run.config.is_file() else ""
        self.writer.add_text("config", f"```yaml\n{text}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def summarize(self, values: Mapping[str, Any]) -> None:
        self.log(numbers(values), step=0)

    def publish(self, outcome: Outcome, run: Run) -> None:
        from matplotlib.image import imread

        self.summarize(flatten("eval", outcome.metrics.to_json()))
        for file in sorted(run.plots.glob("*.png")):
            self.writer.add_image(f"plots/{file.stem}", imread(file), dataformats="HWC")

    def finish(self, *, failed: bool) -> None:
        """Write what is buffered."""
        self.writer.close()


class MlflowTracker:
    """Logs to the MLflow server of ``MLFLOW_TRACKING_URI``, otherwise to ``mlruns.db`` (``logger=mlflow``).

    A run directory is one MLflow run, which a resumed training continues.
    """

    def __init__(self, config: Config, run: Run, group: str) -> None:
        try:
            import mlflow
        except ImportError:
            raise _missing("mlflow-skinny") from None
        self.mlflow: Any = mlflow
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlruns.db').resolve()}"
        try:
            mlflow.set_tracking_uri(uri)
            mlflow.set_experiment(config.logger.project)
            earlier = run.mlflow_id.read_text(encoding="utf-8").strip() if run.mlflow_id.is_file() else None
            started = mlflow.start_run(run_id=earlier, run_name=None if earlier else run.path.name)
        except Exception as error:  # MLflow and the stores behind it raise errors of many kinds
            raise UserError(
                f"logger=mlflow: {uri} can't be used ({str(error).splitlines()[0]}).\n"
                "  Set MLFLOW_TRACKING_URI to a server that runs, or log elsewhere: logger=tensorboard"
            ) from None
        write_text(run.mlflow_id, started.info.run_id)
        if earlier is None:
            settings = flatten("", config.model_dump(mode="json"))
            named = {
                name.strip("/").replace("/", "."): str(value)[:LONGEST] for name, value in settings.items()
            }
            mlflow.log_params(named)
            mlflow.set_tags({"group": group, **dict.fromkeys(config.logger.tags, "true")})

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def summarize(self, values: Mapping[str, Any]) -> None:
        self.mlflow.log_metrics(numbers(values))

    def publish(self, outcome: Outcome, run: Run) -> None:
        self.summarize(flatten("eval", outcome.metrics.to_json()))
        for file in (run.report, run.predictions, *sorted(run.plots.glob("*.png"))):
            if file.is_file():
                self.mlflow.log_artifact(str(file), "plots" if file.suffix == ".png" else None)

    def finish(self, *, failed: bool) -> None:
        """End the MLflow run."""
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


def _missing(package: str) -> UserError:
    return UserError(
        f"logger: needs the package {package}, which is not installed.\n"
        f"  Install it: pip install {package}, or choose logger=none."
    )
