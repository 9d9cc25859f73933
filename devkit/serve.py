"""Starts ComfyUI with this pack for the browser: the command `serve`, in .venv."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from devkit.environment import needs_cpu_flag
from devkit.pack import CACHE, PACK_NAME, run_command
from devkit.server import Server

FIRST_TEMPLATE = "MagicFace-1-one-concept"
EXAMPLE = "example.png"
"""What Load Image starts with, and every template for pictures of one's own."""


def template_link(url: str, template: str = FIRST_TEMPLATE) -> str:
    """The page's address with a template open. Its names are letters, digits, '-', '_' and '.'."""
    return f"{url}/?template={template}&source={PACK_NAME}"


def give_example(host: Path, inputs: Path) -> None:
    """Copies ComfyUI's own example into an input folder that has none."""
    example = host / "input" / EXAMPLE
    if example.is_file() and not (inputs / EXAMPLE).exists():
        shutil.copyfile(example, inputs / EXAMPLE)


def welcome(url: str, output: Path) -> str:
    """What a newcomer needs to know of a server. output: where its pictures go."""
    return (
        f"\nopen {template_link(url)}\nsaved pictures go to {output}\n(more workflows: Templates >"
        f" {PACK_NAME}; Ctrl-C stops)"
    )


def serve(host: Path, port: int) -> int:
    """`host` is the folder of ComfyUI. Returns when the server ends."""
    python = Path(sys.executable)
    cpu = needs_cpu_flag(python)
    base = CACHE / "comfyui"
    with Server(host, python, base, cpu=cpu, port=port, log_to_file=False) as server:
        server.info_with_pack()
        give_example(host, server.input_dir)
        print(welcome(server.url, server.output_dir), flush=True)
        return server.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, metavar="DIR")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    return serve(options.comfyui, options.port)


if __name__ == "__main__":
    sys.exit(run_command(main))
