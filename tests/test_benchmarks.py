"""The GPU benchmark with tiny models on a CPU, where its speeds mean nothing; the regressions on form."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import form
import gpu
import gpu_records
import preferences
import pytest

ROOT = Path(__file__).resolve().parent.parent


def _gpu_benchmark(out: Path, *arguments: str) -> str:
    """Run the benchmark with a tiny Gemma 2 and return what it printed."""
    command = [
        sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--out", str(out), "--models",
        "gemma2", "--ranks", "4", "--rows", "10", "--folder", str(out / "models"), *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


ONE_OF_EACH = (
    "parity", "4-bit, 512", "fp8, 512", "once, 512", "checkpointed", "frozen", "reference", "merged",
    "logits", "rows",
)  # fmt: skip
"""A variant of each kind: the others differ from these by the number of tokens."""


@pytest.mark.slow
def test_the_gpu_benchmark_runs_every_step_and_none_twice(tmp_path: Path) -> None:
    _gpu_benchmark(tmp_path, "--engines", "plain", "--only", "scoring")
    first = json.loads((tmp_path / "gpu.json").read_text())
    assert [(record["engine"], record["job"]) for record in first] == [("plain", "scoring")]
    printed = _gpu_benchmark(tmp_path, "--only", *ONE_OF_EACH)
    records = json.loads((tmp_path / "gpu.json").read_text())
    assert records[:1] == first and not [record for record in records if "failed" in record], records
    assert "plain: training: checkpointed …" in printed and "plain: scoring" not in printed
    parity = [record for record in records if record["job"] == "parity"]
    assert all(record["hidden_states"] < (0.5 if "fp8" in record["variant"] else 0.05) for record in parity)
    assert len(parity) == 3
    assert "| 4 | training | lmsys_unsloth | fast, 4-bit, 512 tokens |" in _table(tmp_path)
    plan = _gpu_benchmark(tmp_path, "--plan")
    assert all(f"| {record['job']} | {record['variant']} |" in plan for record in records)
    assert "loading" not in _gpu_benchmark(tmp_path, "--only", *ONE_OF_EACH)  # nothing is left


def _table(out: Path) -> str:
    return next(out.glob("gpu-*.md")).read_text()


def _gpu_record(engine: str, variant: str, **numbers: object) -> gpu_records.Record:
    record: gpu_records.Record = dict.fromkeys(gpu_records.WHAT, 0) | {
        "model": "gemma2", "rank": 16, "engine": engine, "job": "training", "variant": variant, "gpu": "none",
        "rows": 40, "tokens": 16384, "tiny": False, "commit": "a", "matmul_tflops": 700.0,
        "mean_length": 900.0, "bound": 2000.0, "ms_per_step": 5.0, "peak_gb": 1.0,
    }  # fmt: skip
    return record | numbers


def test_a_process_that_ends_early_costs_one_variant_and_the_next_call_tries_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: gpu.Run = ("llama3", 16, "plain")
    options = argparse.Namespace(
        models=["llama3"], ranks=[16], engines=["plain"], only=[], rows=40, tokens=16384, tiny=False,
        out=tmp_path, seconds=1e6,
    )  # fmt: skip
    tried: list[list[str]] = []

    def end_after_the_first_variant(*_: object) -> None:
        wanted = gpu.missing(run, options)
        tried.append([variant.job for variant in wanted])
        failed = {"failed": "the GPU is unusable", "out_of_memory": False}
        names = {"job": wanted[0].job, "variant": wanted[0].title}
        gpu_records.add(tmp_path / "gpu.json", gpu_records.describe(options, *run) | names | failed)

    monkeypatch.setattr(gpu, "in_a_process", end_after_the_first_variant)
    monkeypatch.setattr(gpu, "write_random_model", lambda *_: None)
    monkeypatch.setattr(gpu, "matmul_rate", lambda: 1.0)
    gpu.measure_all(options, tmp_path)
    assert tried == [["training", "scoring"], ["scoring"]]
    gpu.measure_all(options, tmp_path)
    assert tried[2:] == [["training", "scoring"]]


def test_a_measurement_is_finished_unless_it_failed_for_a_reason_other_than_memory() -> None:
    assert gpu_records.is_finished(_gpu_record("stock", "kept", tokens_per_second=1.0))
    assert gpu_records.is_finished(_gpu_record("stock", "kept", failed="…", out_of_memory=True))
    assert not gpu_records.is_finished(_gpu_record("stock", "kept", failed="…", out_of_memory=False))


def test_the_table_of_the_gpu_benchmark_shows_the_newest_results_and_the_ratio_to_the_best_stock(
    tmp_path: Path,
) -> None:
    file = tmp_path / "gpu.json"
    for record in (
        _gpu_record("stock", "kept", tokens_per_second=800.0),
        _gpu_record("stock", "checkpointed", tokens_per_second=500.0),
        _gpu_record("lmsys_unsloth", "fast", tokens_per_second=900.0),
        _gpu_record("lmsys_unsloth", "large", failed="OutOfMemoryError: a|b", out_of_memory=True),
        _gpu_record("lmsys_unsloth", "", failed="Traceback") | gpu_records.PROCESS,
        _gpu_record("lmsys_unsloth", "fast", tokens_per_second=1600.0, commit="b"),
    ):
        gpu_records.add(file, record)
        gpu_records.add(file, record)
    assert len(gpu_records.read(file)) == 6
    options = argparse.Namespace(rows=40, tokens=16384, tiny=False)
    text = gpu_records.write_table(file, "python benchmarks/gpu.py", "none", options).read_text()
    assert "| fast | 1,600 | 5 | 80% | 2.00× | 1.0 |" in text and "900" not in text.split("##")[1]
    assert "| large | OutOfMemoryError: a/b | | | | |" in text and "Traceback" not in text
    assert "- lmsys_unsloth: measured at commit a, b" in text


@pytest.mark.slow
def test_the_regressions_on_form_are_compared_on_files_and_on_the_arena(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.csv"
    preferences.write_csv(file, [preferences.record(str(k), prompt=[f"prompt {k // 2}"]) for k in range(60)])
    assert form.main([str(file), "--folds", "0,1", "--arena", "0"]) == 0
    *_, of_file, of_arena = capsys.readouterr().out.splitlines()
    assert of_file.startswith("| rows.csv |")
    name, _, _, prior, baseline, regression, difference = of_arena.strip("| ").split(" | ")
    assert name == "arena, seed 0" and difference.startswith("−")
    assert float(regression) < float(baseline) < float(prior)
