"""Mutation check: change one operator, constant or condition of a module at a time; a test must fail.

    python benchmarks/mutants.py                      # all modules of the list: two hours on a core
    python benchmarks/mutants.py folds --sample 40    # 40 mutants of one module, drawn with a seed
    python benchmarks/mutants.py folds --again FILE   # those that an earlier output lists as surviving

Each mutant is run in a forked process with the tests of its module, in a copy of the checkout. Surviving
mutants are printed, except those that ``equivalent_mutants.yaml`` names with a reason.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent

MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "metrics": ("evaluate/metrics.py", ("evaluate/test_metrics.py",)),
    "calibration": (
        "evaluate/calibration.py", ("evaluate/test_metrics.py", "evaluate/test_adjustment.py"),
    ),
    "bootstrap": ("evaluate/bootstrap.py", ("evaluate/test_bootstrap.py", "evaluate/test_metrics.py")),
    "folds": ("data/folds.py", ("data/test_folds.py", "data/test_dataset.py")),
    "rendering": (
        "prompting/rendering.py",
        ("prompting/test_rendering.py", "prompting/test_golden.py", "prompting/test_guarantees.py"),
    ),
    "budget": (
        "prompting/budget.py",
        ("prompting/test_budget.py", "prompting/test_truncation.py", "prompting/test_golden.py"),
    ),
    "answer_tokens": (
        "prompting/answer_tokens.py", ("prompting/test_answer_tokens.py", "prompting/test_guarantees.py"),
    ),
    "answer_head": (
        "model/answer_head.py",
        (
            "model/test_answer_head.py", "model/test_heads.py", "train/test_losses.py",
            "train/test_offset_training.py", "train/test_head_training.py",
        ),
    ),
    "lm_head": (
        "model/lm_head.py",
        ("model/test_lm_head.py", "model/test_answer_head.py", "model/test_decoder.py"),
    ),
    "parity": ("model/parity.py", ("model/test_parity.py",)),
    "features": ("data/form/features.py", ("data/test_form.py",)),
    "regression": ("data/form/regression.py", ("data/test_form.py", "evaluate/test_baselines.py")),
    "offset": ("data/form/offset.py", ("data/test_form.py",)),
    "stacking": ("evaluate/stacking.py", ("evaluate/test_stacking.py", "evaluate/test_adjustment.py")),
}  # fmt: skip
"""Modules that must not drift, in the package, and their tests in ``tests``."""

EQUIVALENT = {
    f"{each['line']} → {each['mutant']}"
    for each in yaml.safe_load((ROOT / "benchmarks" / "equivalent_mutants.yaml").read_text(encoding="utf-8"))
}
"""Mutants that compute the same, or what no test should fix."""

_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A changed module."""

    module: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.before.strip()} → {self.after.strip()}"


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """All mutants of a module, one change each."""
    tree, lines = ast.parse(source), source.splitlines(keepends=True)
    skipped = {id(n) for node in ast.walk(tree) for n in _not_run(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        for changed in _changes(node):
            start, end = node.lineno - 1, node.end_lineno or node.lineno  # type: ignore[attr-defined]
            if end - start > 1:
                continue
            old = lines[start]
            low, high = node.col_offset, node.end_col_offset  # type: ignore[attr-defined]
            raw = old.encode()
            new = (raw[:low] + ast.unparse(changed).encode() + raw[high:]).decode()
            if new != old:
                text = "".join([*lines[:start], new, *lines[start + 1 :]])
                with contextlib.suppress(SyntaxError):
                    ast.parse(text)
                    yield Mutant(module, start + 1, old, new, text)


def _changes(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            yield ast.BinOp(left, _BINARY[type(op)](), right)
        case ast.Compare(left, [op], comparators) if type(op) in _COMPARE:
            yield ast.Compare(left, [_COMPARE[type(op)]()], comparators)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
        case _:
            return


def _not_run(node: ast.AST) -> Iterator[ast.AST]:
    """What does not change what is computed: annotations, decorators, ``strict=True``, messages of errors."""
    for decorator in getattr(node, "decorator_list", ()):
        yield from ast.walk(decorator)
    for field in ("annotation", "returns"):
        if isinstance(part := getattr(node, field, None), ast.AST):
            yield from ast.walk(part)
    strict = isinstance(node, ast.keyword) and node.arg == "strict"
    if strict or isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
        yield from ast.walk(node)


def change(text: str) -> str:
    """The change that a line of the output describes, without the module and the number of the line."""
    return text.partition(": ")[2]


def survives(mutant: Mutant, checkout: Path, file: Path, tests: tuple[str, ...]) -> bool:
    """Whether all tests pass with the mutant; they run in a process that ends with it."""
    original = file.read_text(encoding="utf-8")
    file.write_text(mutant.source, encoding="utf-8")
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import pytest

            os.chdir(checkout)
            words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not gpu", "--timeout=120"]
            status = int(pytest.main([*words, *(f"tests/{test}" for test in tests)]))
        os._exit(status)
    _, result = os.waitpid(child, 0)
    file.write_text(original, encoding="utf-8")
    return result == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(MODULES), metavar="MODULE")
    parser.add_argument("--sample", type=int, help="number of mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, metavar="FILE", help="output whose surviving mutants to run")
    options = parser.parse_args()
    listed = set()
    if options.again is not None:
        if not options.again.is_file():
            parser.error(f"--again {options.again}: there is no such file; name the output of an earlier run")
        listed = {change(line) for line in options.again.read_text(encoding="utf-8").splitlines()}
    with tempfile.TemporaryDirectory() as scratch:
        checkout = Path(scratch, "checkout")
        ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, checkout, symlinks=True, ignore=ignored)
        sys.path[:0] = [str(checkout), str(checkout / "tests"), str(checkout / "benchmarks")]
        import sklearn.linear_model  # noqa: F401  imported once for all mutants
        import torch

        torch.set_num_threads(1)
        import transformers  # noqa: F401

        surviving = []
        for name in options.modules:
            path, tests = MODULES[name]
            file = checkout / "lmsys_unsloth" / path
            found = list(mutants(name, file.read_text(encoding="utf-8")))
            if options.again is not None:
                found = [mutant for mutant in found if change(str(mutant)) in listed]
            if options.sample is not None and options.sample < len(found):
                found = random.Random(options.seed).sample(found, options.sample)
            started = time.perf_counter()
            alive = [mutant for mutant in found if survives(mutant, checkout, file, tests)]
            alive = [mutant for mutant in alive if change(str(mutant)) not in EQUIVALENT]
            seconds = time.perf_counter() - started
            print(f"{name}: {len(found)} mutants, {len(alive)} survive, {seconds:.0f} s", flush=True)
            for mutant in alive:
                print(f"  {mutant}", flush=True)
            surviving += alive
    return 1 if surviving else 0


if __name__ == "__main__":
    sys.exit(main())
