"""The layer rule: magic/ knows only torch and numpy, host/ does not know nodes/, nodes/ may use
both."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative_to_root(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of what a file imports; "." stands for the project root, as in
    ".magic.blocks"."""
    package = path.relative_to(ROOT).parent.parts
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.level == 0:
            yield statement.module or ""
        elif isinstance(statement, ast.ImportFrom):
            base = [
                *package[: len(package) - statement.level + 1],
                *(statement.module or "").split("."),
            ]
            yield from (
                "." + ".".join(filter(None, [*base, alias.name])) for alias in statement.names
            )


def layers(path: Path) -> set[str]:
    """The top level of every import: "torch", or ".magic" for the project's own packages."""
    return {
        "." + name.split(".")[1] if name.startswith(".") else name.split(".")[0]
        for name in imported_modules(path)
    }


@pytest.mark.parametrize("path", sources("magic"), ids=relative_to_root)
def test_magic_imports_only_torch_numpy_and_itself(path: Path) -> None:
    assert layers(path) - {".magic", "torch", "numpy"} <= sys.stdlib_module_names


@pytest.mark.parametrize("path", sources("host"), ids=relative_to_root)
def test_host_does_not_import_nodes(path: Path) -> None:
    assert layers(path).isdisjoint({".nodes"})


@pytest.mark.parametrize(
    "path",
    sources("magic", "host", "nodes", "demo") + sorted(ROOT.glob("*.py")),
    ids=relative_to_root,
)
def test_nothing_evaluates_text_or_unpickles(path: Path) -> None:
    assert layers(path).isdisjoint(FORBIDDEN_MODULES)
    calls = [
        node.func
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert FORBIDDEN_CALLS.isdisjoint(
        function.id for function in calls if isinstance(function, ast.Name)
    )
