"""The layer rule: which room may import which, and what nobody imports or calls."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS: Mapping[str, frozenset[str]] = {
    room: frozenset(others.split())
    for room, others in {
        "magic": "",
        "host.models": "magic",
        "host.pictures": "magic",
        "host.text": "magic host.models",
        "host.sampling": "magic host.text host.models",
        "host.layout": "magic host.sampling host.text host.pictures",
        "host.inversion": "magic host.sampling host.text host.models",
        "host.analysis": "magic host.sampling host.layout host.text",
        "host.systems": "magic host.sampling host.layout host.inversion host.text",
        "host.faces": "magic host.models host.pictures",
        "host.segmentation": "magic host.faces host.models host.pictures",
        "host.training": "magic host.sampling host.text host.faces host.models host.pictures",
        "host.metrics": "magic host.models host.faces host.pictures",
        "host.page": (
            "magic host.models host.pictures host.text host.sampling host.layout host.inversion"
            " host.analysis host.systems host.faces host.segmentation host.training host.metrics"
        ),
        "nodes": (
            "magic host.models host.pictures host.text host.sampling host.layout host.inversion"
            " host.analysis host.systems host.faces host.segmentation host.training host.metrics"
            " host.page"
        ),
    }.items()
}
"""Every room of the pack, and the rooms that it may import beside itself. A room that is not here
may not be there: the table is the map."""
TOY = {"nodes/toy.py", "nodes/identity.py"}
"""Nodes of the toy world, and the one that offers its identity network, know demo/."""
THIRD_PARTIES_OF_MAGIC = {"torch", "numpy"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative_to_root(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: str, text: str) -> Iterator[str]:
    """Absolute names of what a file imports; "." stands for the project's root, as in
    ".magic.blocks"."""
    package = Path(path).parent.parts
    for statement in ast.walk(ast.parse(text)):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.level == 0:
            yield statement.module or ""
        elif isinstance(statement, ast.ImportFrom):
            kept = package[: len(package) - statement.level + 1]
            base = [*kept, *filter(None, (statement.module or "").split("."))]
            yield from ("." + ".".join([*base, alias.name]) for alias in statement.names)


def room_of(module: str) -> str:
    """'host.sampling' for 'host.sampling.rows.Chunk', 'magic' for 'magic.blocks'."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "host" else parts[0]


def violations(path: str, text: str) -> list[str]:
    """What a file of the pack imports against the table, each as one sentence."""
    room = room_of(path.removesuffix(".py").replace("/", "."))
    if room not in ROOMS:
        return [f"{path} lies in a room that is not in the table"]
    complaints = []
    for module in imported_modules(path, text):
        if module.startswith("."):
            other = room_of(module[1:])
            is_toy = other == "demo" and path in TOY
            if other != room and other not in ROOMS[room] and not is_toy:
                complaints.append(f"{path} imports {module[1:]}: {room} may not import {other}")
        elif room == "magic":
            top = module.split(".")[0]
            if top not in THIRD_PARTIES_OF_MAGIC | sys.stdlib_module_names:
                complaints.append(f"{path} imports {module}: magic knows torch and numpy only")
    return complaints


@pytest.mark.parametrize("path", sources("magic", "host", "nodes"), ids=relative_to_root)
def test_rooms_import_only_what_the_table_allows(path: Path) -> None:
    if path == ROOT / "host" / "__init__.py":
        assert not list(imported_modules("host/__init__.py", path.read_text(encoding="utf-8")))
        return
    assert violations(relative_to_root(path), path.read_text(encoding="utf-8")) == []


def test_the_table_has_no_cycle() -> None:
    placed: set[str] = set()
    while free := {room for room, others in ROOMS.items() if others <= placed} - placed:
        placed |= free
    assert placed == ROOMS.keys(), "these rooms import each other in a circle"


def test_every_room_of_the_table_is_there() -> None:
    for room in ROOMS:
        assert (ROOT / room.replace(".", "/") / "__init__.py").is_file()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("magic/blocks.py", "import comfy.samplers"),
        ("magic/blocks.py", "from ..host.text import prompts"),
        ("host/models/folders.py", "from ..pictures.palette import COLOURS"),
        ("host/sampling/rows.py", "def late():\n    from ..layout.tracker import LayoutTracker"),
        ("host/analysis/correspondence.py", "from ..systems.magicface import MagicFacePatch"),
        ("host/systems/magicface.py", "from ..page.listening_page import listening_page"),
        ("host/training/run.py", "from ...nodes import declare"),
        ("host/training/run.py", "from ...demo import portraits"),
        ("host/metrics/table.py", "from ...bench import toy"),
        ("nodes/magicface_apply.py", "from ..demo.portraits import render"),
        ("nodes/magicface_apply.py", "from ..bench import toy"),
        ("host/attic/box.py", ""),
    ],
)
def test_a_violation_of_each_kind_is_noticed(path: str, text: str) -> None:
    assert len(violations(path, text)) == 1


@pytest.mark.parametrize(
    "path",
    sources("magic", "host", "nodes", "demo", "devkit") + sorted(ROOT.glob("*.py")),
    ids=relative_to_root,
)
def test_nothing_evaluates_text_or_unpickles(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    modules = {name.split(".")[0] for name in imported_modules(relative_to_root(path), text)}
    assert modules.isdisjoint(FORBIDDEN_MODULES)
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = {function.id for function in calls if isinstance(function, ast.Name)}
    assert FORBIDDEN_CALLS.isdisjoint(names)
