"""This project as a folder and as a package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CACHE = ROOT / ".cache"

PACK_NAME = "ComfyUI-MagicPortrait"

PACK_NODE = "MagicFaceApply"


class DevError(Exception):
    """Something the user can act on: printed without a traceback."""


def load_pack() -> None:
    """Makes this folder importable as the package `magicportrait`, whatever it is called: for tests
    and benchmarks."""
    if "magicportrait" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "magicportrait", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules["magicportrait"] = package
    spec.loader.exec_module(package)
