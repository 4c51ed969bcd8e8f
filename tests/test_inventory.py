"""Licences of all pinned packages, and the bill of materials."""

from __future__ import annotations

import re

import inventory
import pytest


def test_every_licence_is_known_and_suits_the_project() -> None:
    assert inventory.problems(inventory.packages()) == []


def test_the_packages_of_every_file_are_listed() -> None:
    files = {file.name for file in inventory.FOLDER.glob("*.txt")}
    assert files - {"vllm.txt"} == set(inventory.USES)


def test_the_document_lists_the_pinned_versions() -> None:
    """If this fails: ``python benchmarks/inventory.py licences``."""
    assert inventory.document(inventory.packages()) == inventory.DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("licence", ["unknown", "AGPL-3.0-or-later", "MIT AND GPL-3.0-only"])
def test_other_licences_are_named(licence: str) -> None:
    package = inventory.Package("x", "1", "imported", licence)
    assert inventory.problems([package]) == [f"x 1: {licence}"]


def test_the_bill_of_materials_names_every_package_once_and_only_known_ones() -> None:
    found = inventory._unique(inventory.packages())
    bill = inventory.bill_of_materials(found)
    assert bill == inventory.bill_of_materials(found) and bill["specVersion"] == "1.6"
    refs = [component["bom-ref"] for component in bill["components"]]
    assert len(refs) == len(set(refs)) == len(found)
    assert all(re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[\w.]+", ref) for ref in refs)
    for entry in bill["dependencies"]:
        assert set(entry["dependsOn"]) <= set(refs)
    needs = {entry["ref"].partition("@")[0]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert any(ref.startswith("pkg:pypi/omegaconf@") for ref in needs["pkg:pypi/hydra-core"])
    assert {"excluded", "required"} == {component["scope"] for component in bill["components"]}
