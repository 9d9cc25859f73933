"""Finds ComfyUI, installs it, and makes it importable."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from devkit.environment import create_venv, pip_install, venv_program
from devkit.pack import ROOT, DevError

TESTED_VERSION = "0.33.0"
FIND_HINT = (
    "set COMFYUI_PATH, pass --comfyui DIR, or install ComfyUI with `pip install comfy-cli` and"
    " `comfy install`"
)


class HostNotFound(DevError):
    """There is no ComfyUI in any of the usual places."""


def is_comfyui(folder: Path) -> bool:
    return (
        (folder / "main.py").is_file()
        and (folder / "nodes.py").is_file()
        and (folder / "comfy").is_dir()
    )


def default_comfyui() -> Path:
    """Where comfy-cli installs when it is not told otherwise."""
    home = Path.home() if platform.system() == "Linux" else Path.home() / "Documents"
    return home / "comfy" / "ComfyUI"


def find_comfyui(folder: Path | None = None) -> Path:
    """The ComfyUI folder: `folder`, COMFYUI_PATH, the one this pack is installed in, or comfy-cli's
    default place."""
    name = folder or os.environ.get("COMFYUI_PATH")
    if name:
        host = Path(name).expanduser().resolve()
        if not is_comfyui(host):
            raise DevError(
                f"{host} is not a ComfyUI folder (main.py, nodes.py and comfy/ expected)"
            )
        return host
    # A pack that is linked into custom_nodes has its host beside the link, not beside the link's
    # target.
    for pack in (Path(os.path.abspath(__file__)).parent.parent, ROOT):
        if pack.parent.name == "custom_nodes" and is_comfyui(pack.parent.parent):
            return pack.parent.parent.resolve()
    if is_comfyui(default_comfyui()):
        return default_comfyui().resolve()
    raise HostNotFound(f"no ComfyUI found: {FIND_HINT}")


def use_host() -> None:
    """Makes ComfyUI importable in this process, on the CPU when torch has nothing better."""
    import torch

    sys.path.insert(0, str(find_comfyui()))
    from comfy.cli_args import args

    # comfy.model_management reads this when it is imported, and refuses to work without a device.
    args.cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())


def host_version(host: Path) -> str:
    match = re.search(
        r'__version__ = "(.+?)"', (host / "comfyui_version.py").read_text(encoding="utf-8")
    )
    return match[1] if match else "unknown"


def install_comfyui() -> Path:
    """Installs the tested ComfyUI version with comfy-cli; its requirements are left to
    `prepare_python`."""
    print(f"no ComfyUI found, installing {TESTED_VERSION} into {default_comfyui()}")
    if platform.system() == "Darwin":
        hardware = "--m-series" if platform.machine() == "arm64" else "--cpu"
    else:
        hardware = "--nvidia" if shutil.which("nvidia-smi") else "--cpu"
    create_venv()
    comfy = venv_program("comfy")
    options = [
        "--skip-manager",
        "--skip-torch-or-directml",
        "--skip-requirement",
        "--version",
        TESTED_VERSION,
        hardware,
    ]
    workspace = ["--workspace", str(default_comfyui())]
    try:
        pip_install(venv_program("python"), ["comfy-cli"])
        subprocess.run([comfy, "--skip-prompt", *workspace, "install", *options], check=True)
        return find_comfyui()
    except (OSError, subprocess.CalledProcessError, DevError) as error:
        raise DevError(f"comfy-cli could not install ComfyUI ({error}): {FIND_HINT}") from error


def find_or_install_comfyui(folder: Path | None) -> Path:
    """As `find_comfyui`, but installs ComfyUI where there is none."""
    try:
        return find_comfyui(folder)
    except HostNotFound:
        return install_comfyui()
