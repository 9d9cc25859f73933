"""The pack and ComfyUI in this process: imported before anything of either."""

from __future__ import annotations

from devkit.comfyui import use_host
from devkit.pack import load_pack

load_pack()
use_host()
