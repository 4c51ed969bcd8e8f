"""The package stays one tree: imports follow the order of the folders, without cycles and unused modules."""

from __future__ import annotations

import graphlib

from import_graph import COMMANDS, FOLDERS, PACKAGE, REPOSITORY, drawing, folder, graph, imports, modules

MAX_FILES = 14
MAX_LINES = 300


def test_every_import_follows_the_order_of_the_folders() -> None:
    wrong = [
        f"{source} imports {target}"
        for source, targets in graph().items()
        for target in targets
        if folder(source) in FOLDERS
        and (folder(target) not in FOLDERS or FOLDERS.index(folder(target)) > FOLDERS.index(folder(source)))
    ]
    assert not wrong, "\n".join([*wrong, "", drawing()])


def test_every_module_has_its_place() -> None:
    names = {folder(module) for module in modules()} - {""}
    assert names == {*FOLDERS, *COMMANDS}


def test_no_module_imports_itself_through_others() -> None:
    try:
        graphlib.TopologicalSorter(graph()).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(f"import cycle: {' → '.join(error.args[1])}") from None


def test_every_module_is_imported() -> None:
    known = modules()
    used = set().union(*graph().values())
    for script in ("train.py", "eval.py"):
        used |= imports(REPOSITORY / script, set(known))
    unused = {
        name
        for name, file in known.items()
        if name not in used
        and file.name not in ("__init__.py", "__main__.py")
        and folder(name) not in (*COMMANDS, "commands")
    }
    assert not unused


def test_folders_and_files_stay_small() -> None:
    for name in FOLDERS:
        files = [file for file in (REPOSITORY / PACKAGE / name).glob("*.py") if file.name != "__init__.py"]
        assert len(files) <= MAX_FILES, f"{name}: {len(files)} files"
    long = [
        f"{name}: {lines} lines"
        for name, file in modules().items()
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    ]
    assert not long


def test_entry_points_stay_short() -> None:
    for script in ("train.py", "eval.py"):
        assert len((REPOSITORY / script).read_text(encoding="utf-8").splitlines()) <= 60, script
