"""A ComfyUI server for benches that draw through it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import aiohttp
from PIL import Image

from devkit.client import Client, Picture, finish
from devkit.comfyui import find_comfyui
from devkit.environment import needs_cpu_flag
from devkit.pack import ROOT
from devkit.server import Server


def pack_server(base: Path, comfyui: Path | None = None, pack: Path = ROOT) -> Server:
    """A server of its own, with a pack in it, to be entered by `with`.

    base: its folder for pictures, models and settings; comfyui: its source, default as for dev.py;
    pack: the folder of the pack.
    """
    python = Path(sys.executable)
    host = find_comfyui(comfyui)
    return Server(host, python, base, cpu=needs_cpu_flag(python), pack=pack)


def fetch_picture(client: Client, file: Picture) -> Image.Image:
    """A picture that a run has made, as RGB."""
    return Image.open(io.BytesIO(client.fetch(file))).convert("RGB")


def upload_folder(client: Client, folder: Path, remote: str) -> None:
    """Copies all files of a folder into the folder `remote` of a server's inputs."""
    finish(_upload(client.url, folder, remote))


async def _upload(url: str, folder: Path, remote: str) -> None:
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            subfolder = f"{remote}/{path.parent.relative_to(folder).as_posix()}".removesuffix("/.")
            form = aiohttp.FormData({"type": "input", "subfolder": subfolder, "overwrite": "true"})
            form.add_field("image", path.read_bytes(), filename=path.name)
            async with session.post(f"{url}/upload/image", data=form):
                pass
