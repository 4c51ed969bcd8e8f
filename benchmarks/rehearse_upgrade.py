"""Try the newest versions of the packages that break most often, and say which tests fail.

    python benchmarks/rehearse_upgrade.py [unsloth trl transformers …]

Makes a scratch environment (`build/upgrade/.venv`) above this one, in which the named packages, by default
unsloth, unsloth_zoo, trl and transformers, have the newest versions of their index. Runs the tests that are
not slow there and, if any fail, here, and lists those that fail only there. The checkout is not changed.
`--prepare` only makes the environment; `--tests PATH …` runs other tests. Exit status 1: tests fail that pass
with the pinned versions.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / "build" / "upgrade"
PACKAGES = ("unsloth", "unsloth_zoo", "trl", "transformers")


def prepare(packages: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Make the scratch environment; returns the old and the new version of each package that changed.

    The packages are installed without their dependencies, above those of this environment: what does not
    fit them shows in the tests, and in `pip check`.
    """
    environment = SCRATCH / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "pinned.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--upgrade", "--no-deps", "--target", site, *packages], check=True)
    changed = {}
    for name in packages:
        old, new = (_version(python, name) for python in (sys.executable, environment / "bin" / "python"))
        if old != new:
            changed[name] = (old, new)
    return changed


def _version(python: str | Path, name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.check_output([python, "-c", code], text=True).strip()


def failing(python: str | Path, tests: Sequence[str]) -> set[str]:
    """Names of the tests that fail or can't be collected."""
    command = [python, "-m", "pytest", "-m", "not slow and not gpu", "-rfE", "--tb=no", *tests]
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    found = set(re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, flags=re.MULTILINE))
    if done.returncode not in (0, 1) and not found:
        return {f"pytest: {(done.stdout + done.stderr).strip().splitlines()[-1]}"}
    return found


def main(words: Sequence[str]) -> int:
    """Run the rehearsal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="*", default=PACKAGES, help="packages to upgrade")
    parser.add_argument("--prepare", action="store_true", help="only make the environment")
    parser.add_argument("--tests", nargs="+", default=["tests"], metavar="PATH", help="tests to run")
    options = parser.parse_args(words)
    changed = prepare(options.packages)
    for name, (old, new) in changed.items():
        print(f"{name}: {old} → {new}")
    if not changed:
        print("the pinned versions are the newest ones that the index has")
        return 0
    if options.prepare:
        return 0
    new = failing(SCRATCH / ".venv" / "bin" / "python", options.tests)
    broken = sorted(new - failing(sys.executable, options.tests)) if new else []
    for name in broken:
        print(f"fails with the newest versions: {name}")
    print(f"{len(broken)} tests fail that pass with the pinned versions")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
