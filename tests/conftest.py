"""Makes the project root importable as the package `magicportrait`, whatever its folder is
called."""

from __future__ import annotations

import sys
from pathlib import Path

# For devkit. At the end, so that ComfyUI's module `nodes` is found before the
# pack's folder of that name.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from devkit.pack import load_pack

load_pack()
