"""Makes the project root importable as the package `magicportrait`, whatever its folder is called."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# For dev and workflow_format. At the end, so that ComfyUI's module `nodes` is found before the pack's folder of that name.
sys.path.append(str(ROOT))


def load_pack() -> None:
    spec = importlib.util.spec_from_file_location("magicportrait", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules["magicportrait"] = package
    spec.loader.exec_module(package)


load_pack()
