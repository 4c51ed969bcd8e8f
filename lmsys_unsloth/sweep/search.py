"""A search for the best values of some keys with Optuna: each trial is a job of the sweep directory."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from lmsys_unsloth.config.sweep_schema import Parameter, SearchConfig
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.sweep.execution import request_stop
from lmsys_unsloth.sweep.jobs import Job, save_jobs
from lmsys_unsloth.sweep.launchers import require
from lmsys_unsloth.sweep.plan import Plan, compose_jobs, override

JOURNAL = "optuna.log"
"""File of the sweep directory with all trials, in the format of Optuna's ``JournalFileBackend``."""

STUDY = "search"
_JOB = "job"
"""Name of the user attribute of a trial that holds the name of its job."""

LOSS = "early_stopping_loss"
"""Name of the loss in ``evaluations.json``."""


SETS = {"early_stopping": "early-stopping set", "validation": "validation fold"}


class Search:
    """Proposes a job for each trial, prunes it while it runs, and records its result.

    Trials are in a file of the sweep directory. A search that is started again goes on with the trials that
    it had begun, and counts all earlier ones.

    Args:
        plan: plan whose ``search`` is set.

    Raises:
        UserError: Optuna is not installed, or the file belongs to a search over other values.
    """

    def __init__(self, plan: Plan) -> None:
        assert plan.search is not None
        optuna = require("optuna", f"search={plan.search.name}")
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(logging.WARNING)
        self.plan, self.config, self.optuna = plan, plan.search, optuna
        file = str(plan.folder / JOURNAL)
        plan.folder.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(
            JournalFileBackend(file, JournalFileOpenLock(file))  # needs no symbolic links
        )
        self.study: Any = optuna.create_study(
            storage=storage, study_name=STUDY, direction="minimize", load_if_exists=True
        )
        self.space = {key: distribution(optuna, values) for key, values in self.config.space.items()}
        self._require_same_space()
        self.study.sampler = self._sampler(len(self.study.trials))
        self.study.pruner = self._pruner()
        self.trials: dict[str, Any] = {}
        """Trials of the jobs that this process runs, by the job's name."""
        self.pruned: set[str] = set()
        self.reported: dict[str, int] = {}
        """Step of the last evaluation that was reported of a job."""
        self._begun = [t for t in self.study.trials if t.state == optuna.trial.TrialState.RUNNING]

    def next(self) -> Job | None:
        """The job of the next trial; None when there are as many trials as ``search.trials`` says."""
        while True:
            if self._begun:
                trial = self.optuna.trial.Trial(self.study, self._begun.pop(0)._trial_id)
            elif len(self.study.trials) < self.config.trials:
                trial = self.study.ask(self.space)
            else:
                return None
            values = [override(key, value) for key, value in trial.params.items()]
            [job] = compose_jobs([[*self.plan.overrides, *values]], self.plan.folder)
            save_jobs(self.plan.folder, [job], self.plan.arguments, self.config.objective)
            trial.set_user_attr(_JOB, job.name)
            if job.name in self.trials:  # drawn again while it runs
                self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
                continue
            self.trials[job.name] = trial
            if job.state() not in ("finished", "pruned"):
                return job
            self.ended(job)  # drawn again: its result is known

    def watch(self, job: Job) -> None:
        """Report new evaluations of a running job, and stop it if it is worse than the median of others."""
        if not self.config.prune or job.name in self.pruned:
            return
        trial, last = self.trials[job.name], self.reported.get(job.name, 0)
        for entry in evaluations(job):
            if entry["step"] > last:
                trial.report(entry[LOSS], entry["step"])
                self.reported[job.name] = entry["step"]
        if self.reported.get(job.name, 0) > last and trial.should_prune():
            self.pruned.add(job.name)
            request_stop(job)

    def ended(self, job: Job) -> None:
        """Record how a trial ended; one that was interrupted stays open."""
        trial, state = self.trials.pop(job.name), self.optuna.trial.TrialState
        if job.name in self.pruned and job.state() == "interrupted":
            job.note(state="pruned")
        match job.state():
            case "finished":
                self.study.tell(trial, objective(job, self.config))
            case "pruned":
                self.study.tell(trial, state=state.PRUNED)
            case "failed":
                self.study.tell(trial, state=state.FAIL)

    def describe(self) -> str:
        """What was found, in a few lines."""
        try:
            best = self.study.best_trial
        except ValueError:
            return f"search {self.plan.folder}: no trial has finished"
        values = "  ".join(override(key, value) for key, value in best.params.items())
        kinds = [trial.state.name for trial in self.study.trials]
        counts = ", ".join(f"{kinds.count(k)} {k.lower()}" for k in dict.fromkeys(kinds))
        return (
            f"search {self.plan.folder}: {counts}\n"
            f"best: {values}\n"
            f"  loss on the {SETS[self.config.objective]} {best.value:.4f}: "
            f"{self.plan.folder / best.user_attrs[_JOB]}"
        )

    def _require_same_space(self) -> None:
        for trial in self.study.trials:
            if trial.distributions and trial.distributions != self.space:
                raise UserError(
                    f"{self.plan.folder / JOURNAL}: holds a search over other values "
                    f"({', '.join(trial.distributions)}).\n  Continue it with resume={self.plan.folder}, or "
                    "start this one in another folder."
                )

    def _sampler(self, done: int) -> Any:
        seed = self.config.seed + done  # the same seed would draw the same values again
        if self.config.sampler == "random":
            return self.optuna.samplers.RandomSampler(seed=seed)
        return self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.config.startup_trials)

    def _pruner(self) -> Any:
        if not self.config.prune:
            return self.optuna.pruners.NopPruner()
        return self.optuna.pruners.MedianPruner(n_startup_trials=self.config.startup_trials)


def distribution(optuna: Any, parameter: Parameter) -> Any:
    """Optuna's description of the values of one key."""
    d = optuna.distributions
    if parameter.choices is not None:
        return d.CategoricalDistribution(parameter.choices)
    if isinstance(parameter.low, int) and isinstance(parameter.high, int):
        step = 1 if parameter.step is None else int(parameter.step)
        return d.IntDistribution(parameter.low, parameter.high, log=parameter.log, step=step)
    return d.FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def evaluations(job: Job) -> list[dict[str, Any]]:
    """Losses on the early-stopping set so far, ``{"step": …, "early_stopping_loss": …}``."""
    return _read(job.run.evaluations) or []


def objective(job: Job, config: SearchConfig) -> float:
    """The loss of a finished job that the search minimises.

    Raises:
        UserError: the job did not compute it.
    """
    if config.objective == "validation":
        found = job.run.metrics_description().get("log_loss")
        if found is None:
            raise UserError(f"{job.run.metrics}: has no log loss; the validation rows have no known outcome.")
        return float(found)
    return float(min(entry[LOSS] for entry in evaluations(job)))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
