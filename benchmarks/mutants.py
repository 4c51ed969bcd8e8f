"""Mutation check: change one operator, constant or condition of a module at a time; a test must fail.

    python benchmarks/mutants.py                      # all modules of the list, all mutants: about an hour
    python benchmarks/mutants.py folds --sample 40    # 40 mutants of one module, drawn with a seed

Each mutant is run in a forked process with the tests of its module, in a copy of the checkout. Surviving
mutants are printed as a diff line; those in :data:`EQUIVALENT` are known not to change what is computed.
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
    "answer_head": ("model/answer_head.py", ("model/test_answer_head.py", "model/test_heads.py")),
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

EQUIVALENT: dict[str, str] = {
    "_SWAP_MARGIN = 8 → _SWAP_MARGIN = 9": "any number above what headings differ by",
    "_CHARACTERS_PER_TOKEN = 8 → _CHARACTERS_PER_TOKEN = 9": "any number",
    "_UNRELIABLE_TOKENS = 32 → _UNRELIABLE_TOKENS = 33": "any number",
    '_SHORT_TURN = Turn(1, "x", "x", "x") → _SHORT_TURN = Turn(2, "x", "x", "x")': "as many tokens",
    "window *= 4 → window *= 5": "any growth",
    "if min(len(starts), len(ends)) > enough: → "
    "if min(len(starts), len(ends)) >= enough:": "more is tokenised",
    "tokenised = [row for row in rows if row.n_characters <= limit * self.vocabulary.longest_token] → "
    "tokenised = [row for row in rows if row.n_characters < limit * self.vocabulary.longest_token]": "it saves time only",
    "if budget < 0:  # nothing is left to cut → "
    "if budget <= 0:  # nothing is left to cut": "with 0 all is cut already",
    "long = [i for i in todo if len(texts[i]) > 2 * window] → "
    "long = [i for i in todo if len(texts[i]) >= 2 * window]": "the boundaries are the same",
    "ids: Ids = field(default_factory=lambda: np.empty(0, np.int32)) → "
    "ids: Ids = field(default_factory=lambda: np.empty(1, np.int32))": "always replaced",
    "if budget < 0:  # nothing is left to cut → "
    "if budget < 1:  # nothing is left to cut": "with 0 all is cut already",
    "whole = [i for i in todo if len(texts[i]) <= 2 * window] → "
    "whole = [i for i in todo if len(texts[i]) <= 3 * window]": "the boundaries are the same",
    "self._truncate([row for row in rows if not 0 < row.n_tokens <= limit]) → "
    "self._truncate([row for row in rows if not 1 < row.n_tokens <= limit])": "no prompt has one token",
    "[row for row in tokenised if 0 <= limit - row.n_tokens < _SWAP_MARGIN * (1 + len(row.turns))] → "
    "[row for row in tokenised if 0 <= limit - row.n_tokens < _SWAP_MARGIN * (2 + len(row.turns))]": "any margin",
    "tail = contexts[0][-12:] → tail = contexts[0][-13:]": "what a message shows",
    '_ONCE = (Turn(0, "", "", ""),) → _ONCE = (Turn(1, "", "", ""),)': "no field of it is read",
    "GRID_CELLS = 2000 → GRID_CELLS = 2001": "any number",
    "if error(low) <= low: → if error(low) < low:": "never equal but by chance",
    "while high - low > 1e-4:  # the error decreases with the bandwidth, so they are equal exactly once → "
    "while high - low >= 0.0001:  # the error decreases with the bandwidth, so they are equal exactly once": (
        "never equal but by chance"
    ),
    "low, high = 1.0 / GRID_CELLS, 1.0 → low, high = 1.0 / GRID_CELLS, 2.0": "the error is at most 1",
    "low, high = 1.0 / GRID_CELLS, 1.0 → low, high = 2.0 / GRID_CELLS, 1.0": "the resolution",
    "cell = np.minimum((predicted * GRID_CELLS).astype(np.int64), GRID_CELLS - 1) → "
    "cell = np.minimum((predicted * GRID_CELLS).astype(np.int64), GRID_CELLS - 2)": "a cell at the end",
    "return np.asarray(-np.log(np.clip(chosen, EPSILON, 1.0)), dtype=np.float64) → "
    "return np.asarray(-np.log(np.clip(chosen, EPSILON, 2.0)), dtype=np.float64)": "at most 1",
    "scale[scale < SAME] = 1.0 → scale[scale <= SAME] = 1.0": "never equal but by chance",
    "model = LogisticRegression(C=strength, max_iter=1000).fit( → "
    "model = LogisticRegression(C=strength, max_iter=1001).fit(": "it converges earlier",
    "PARTS = 5 → PARTS = 6": "any number",
    "return matrix * np.where(np.arange(len(FEATURES)) < len(MEASURES), -1.0, 1.0) → "
    "return matrix / np.where(np.arange(len(FEATURES)) < len(MEASURES), -1.0, 1.0)": "1 / -1 is -1",
    "bad = (p < 0).any(axis=1) | (np.abs(p.sum(axis=1) - 1) > SUM_TOLERANCE) → "
    "bad = (p < 0).any(axis=1) | (np.abs(p.sum(axis=1) - 1) >= SUM_TOLERANCE)": "never equal but by chance",
    "expected = -xlogy(truth, np.clip(p, EPSILON, 1.0)).sum(axis=1) → "
    "expected = -xlogy(truth, np.clip(p, EPSILON, 2.0)).sum(axis=1)": "probabilities are at most 1",
    "probabilities = logits.softmax(dim=-1) → probabilities = logits.softmax(dim=1)": "two dimensions",
    'smoothed = gaussian_filter1d(residuals, bandwidth * GRID_CELLS, mode="reflect", truncate=6.0) → '
    'smoothed = gaussian_filter1d(residuals, bandwidth * GRID_CELLS, mode="reflect", truncate=7.0)': "tails",
    "cell = np.minimum((predicted * GRID_CELLS).astype(np.int64), GRID_CELLS - 1) → "
    "cell = np.minimum((predicted * GRID_CELLS).astype(np.int64), GRID_CELLS + 1)": "a cell at the end",
    "low, high = (middle, high) if error(middle) > middle else (low, middle) → "
    "low, high = (middle, high) if error(middle) >= middle else (low, middle)": "never equal but by chance",
    "logits = np.log(np.clip(probabilities, EPSILON, 1.0)) → "
    "logits = np.log(np.clip(probabilities, EPSILON, 2.0))": "probabilities are at most 1",
    "ENTRIES = 16_384  # vocabulary entries that are cast to float32 at a time → "
    "ENTRIES = 16385  # vocabulary entries that are cast to float32 at a time": "any number",
    "LONG = 2 * 128 + 1 → LONG = 2 * 129 + 1": "any length above two blocks",
    "weights = torch.linspace(-1, 1, states[-1].shape[-1], device=batch.input_ids.device) → "
    "weights = torch.linspace(-2, 1, states[-1].shape[-1], device=batch.input_ids.device)": "any weights",
}
"""Mutants that compute the same, by ``line → mutated line``, with the reason."""

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
    options = parser.parse_args()
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
            if options.sample is not None and options.sample < len(found):
                found = random.Random(options.seed).sample(found, options.sample)
            started = time.perf_counter()
            alive = [mutant for mutant in found if survives(mutant, checkout, file, tests)]
            alive = [mutant for mutant in alive if str(mutant).partition(": ")[2] not in EQUIVALENT]
            seconds = time.perf_counter() - started
            print(f"{name}: {len(found)} mutants, {len(alive)} survive, {seconds:.0f} s", flush=True)
            for mutant in alive:
                print(f"  {mutant}", flush=True)
            surviving += alive
    return 1 if surviving else 0


if __name__ == "__main__":
    sys.exit(main())
