"""What is installed for this project, and under which licences, from the pinned versions.

    python benchmarks/inventory.py licences            writes docs/licences.md
    python benchmarks/inventory.py sbom OUT.json       writes a bill of materials (CycloneDX 1.6)

Licences are those that installed packages state; run it in an environment made by `make env`. Exit status 1:
a licence is not known, or does not suit the project's.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"

DOCUMENT = ROOT / "docs" / "licences.md"
HEADER = "| package | version | licence | used |\n"

USES = {
    "base.txt": "imported",
    "no-deps.txt": "imported",
    "cpu.txt": "without a GPU",
    "cuda.txt": "with a GPU",
    "sweeps.txt": "sweeps",
    "serve.txt": "server",
    "gptq.txt": "export",
    "loggers.txt": "logging",
    "docs.txt": "documentation",
    "dev.txt": "tests and style",
    "constraints.txt": "indirect",
}
"""What the packages of each file are for, in the order of the document. vllm.txt is another environment."""

BY_HAND = {
    "cut_cross_entropy": "Apple sample code licence",
    "hf_transfer": "Apache-2.0",
    "json5": "Apache-2.0",
    "msgspec": "BSD-3-Clause",
    "nest-asyncio": "BSD-2-Clause",
    "sentencepiece": "Apache-2.0",
    "structlog": "MIT OR Apache-2.0",
    "torchvision": "BSD-3-Clause",
    "tyro": "MIT",
    "xformers": "BSD-3-Clause",
}
"""Licences of packages for GPUs, read from their files: environments without a GPU do not have them."""

NAMES = {
    "3-Clause BSD License": "BSD-3-Clause", "BSD 3-Clause License": "BSD-3-Clause", "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0", "Apache 2.0 License": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0", "BSD License": "BSD-3-Clause", "BSD": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC", "ISC License": "ISC", "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0", "Python Software Foundation License": "PSF-2.0",
}  # fmt: skip
"""SPDX identifiers of names that packages use; "BSD" alone is one of the permissive BSD licences."""

PERMISSIVE = {
    "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "MIT", "MIT-0", "MIT-CMU", "BSD-2-Clause", "BSD-3-Clause",
    "0BSD", "ISC", "PSF-2.0", "Zlib", "CC0-1.0", "BSL-1.0", "CNRI-Python", "Apple sample code licence",
}  # fmt: skip
"""Licences that allow use and distribution together with Apache-2.0 code, with their notices."""

BY_FILE = {"MPL-2.0", "LGPL-3.0-or-later"}
"""Copyleft for the package's own files: it is installed apart and called, neither copied nor changed."""


@dataclass(frozen=True)
class Package:
    """A pinned package."""

    name: str
    version: str
    use: str
    licence: str

    @property
    def ref(self) -> str:
        """Identifier in a bill of materials: the package URL."""
        return f"pkg:pypi/{re.sub('[-_.]+', '-', self.name).lower()}@{self.version}"

    def parts(self) -> list[str]:
        """The licences that all hold; of alternatives, the first one."""
        return [part.split(" OR ")[0].strip() for part in self.licence.split(" AND ")]


def packages() -> list[Package]:
    """All pinned packages, in the order of :data:`USES` and of the files."""
    found = []
    for file, use in USES.items():
        for line in (FOLDER / file).read_text(encoding="utf-8").splitlines():
            if match := re.match(r"([\w.-]+)==([\w.]+)", line):
                name, version = match.groups()
                found.append(Package(name, version, use, licence_of(name)))
    return found


def licence_of(name: str) -> str:
    """SPDX expression of an installed package; "unknown" if it states none."""
    if name in BY_HAND:
        return BY_HAND[name]
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
    if expression := metadata.get("License-Expression"):
        return str(expression)
    stated = (metadata.get("License") or "").strip().splitlines()[:1]
    classifiers = [
        line.split(" :: ")[-1] for line in metadata.get_all("Classifier") or [] if "License" in line
    ]
    for text in [*stated, *classifiers]:
        name_ = NAMES.get(text, text)
        if name_ in PERMISSIVE | BY_FILE or " AND " in name_ or " OR " in name_:
            return name_
    return "unknown"


def problems(found: Sequence[Package]) -> list[str]:
    """Packages whose licence is not known to suit the project's."""
    return [
        f"{package.name} {package.version}: {package.licence}"
        for package in found
        if not set(package.parts()) <= PERMISSIVE | BY_FILE
    ]


def document(found: Sequence[Package]) -> str:
    """The text of docs/licences.md: what stands above the table there is kept."""
    before = DOCUMENT.read_text(encoding="utf-8").partition(HEADER)[0]
    rows = (f"| {p.name} | {p.version} | {p.licence} | {p.use} |\n" for p in found)
    return f"{before}{HEADER}|---|---|---|---|\n{''.join(rows)}"


def bill_of_materials(found: Sequence[Package]) -> dict[str, Any]:
    """A CycloneDX 1.6 document. The same pins give the same document: it has no time and no random number."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.search(r'__version__ = "(.+)"', (ROOT / "lmsys_unsloth" / "__init__.py").read_text())
    assert version is not None
    own = f"pkg:pypi/lmsys-unsloth@{version[1]}"
    by_name = {re.sub("[-_.]+", "-", p.name).lower(): p.ref for p in found}
    needed = {package.ref: _needs(package.name, by_name) for package in found}
    direct = sorted({p.ref for p in found if p.use in ("imported", "without a GPU", "with a GPU")})
    text = json.dumps([[p.ref, p.licence] for p in found])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, own + text)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": own, "name": "lmsys_unsloth", "version": version[1],
                "description": project["description"], "purl": own,
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": [_component(package) for package in found],
        "dependencies": [
            {"ref": own, "dependsOn": direct},
            *({"ref": ref, "dependsOn": needs} for ref, needs in needed.items()),
        ],
    }  # fmt: skip


def _component(package: Package) -> dict[str, Any]:
    spdx = "Apple" not in package.licence
    licence = {"expression": package.licence} if spdx else {"license": {"name": package.licence}}
    return {
        "type": "library", "bom-ref": package.ref, "name": package.name, "version": package.version,
        "scope": "excluded" if package.use == "tests and style" else "required",
        "licenses": [licence], "purl": package.ref,
    }  # fmt: skip


def _needs(name: str, refs: dict[str, str]) -> list[str]:
    """Pinned packages that an installed package requires, without its extras."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    names = [re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line]
    keys = [re.sub("[-_.]+", "-", found).lower() for found in names]
    return sorted({refs[key] for key in keys if key in refs})


def main(words: Sequence[str]) -> int:
    """Run the command."""
    if list(words) != ["licences"] and not (len(words) == 2 and words[0] == "sbom"):
        print(__doc__)
        return 2
    found = packages()
    if wrong := problems(found):
        print("licences to look at:", *wrong, sep="\n  ", file=sys.stderr)
        return 1
    if words[0] == "licences":
        DOCUMENT.write_text(document(found), encoding="utf-8")
    else:
        Path(words[1]).write_text(
            json.dumps(bill_of_materials(_unique(found)), indent=2) + "\n", encoding="utf-8"
        )
    return 0


def _unique(found: Sequence[Package]) -> list[Package]:
    """Each package once, as some are in several files."""
    return list({package.ref: package for package in found}.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
