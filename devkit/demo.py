"""Runs a workflow on a ComfyUI of its own and saves its pictures: the command `demo`, in .venv."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from devkit.client import run_prompt
from devkit.comfyui import host_version
from devkit.environment import needs_cpu_flag
from devkit.pack import CACHE, ROOT, DevError, run_command
from devkit.server import Server
from devkit.workflow_format import WorkflowError, to_api_prompt


def demo(host: Path, workflow_file: Path, output: Path, pack: Path = ROOT) -> int:
    """`host` is the folder of ComfyUI, `pack` that of the pack it gets. Prints where the pictures
    are."""
    try:
        workflow = json.loads(workflow_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DevError(f"cannot read {workflow_file}: {error}") from error
    python = Path(sys.executable)
    cpu = needs_cpu_flag(python)
    print(f"ComfyUI {host_version(host)} in {host}, on the {'CPU' if cpu else 'GPU'}", flush=True)
    with Server(host, python, CACHE / "comfyui", cpu=cpu, pack=pack) as server:
        try:
            prompt = to_api_prompt(workflow, server.info_with_pack())
        except WorkflowError as error:
            raise DevError(f"{workflow_file}: {error}") from error
        pictures = run_prompt(server, prompt)
        output.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            path = output / Path(picture["filename"]).name
            path.write_bytes(server.fetch(picture))
            print(path)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, metavar="DIR")
    parser.add_argument("--workflow", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pack", type=Path, default=ROOT, metavar="DIR")
    options = parser.parse_args()
    return demo(options.comfyui, options.workflow, options.output, options.pack)


if __name__ == "__main__":
    sys.exit(run_command(main))
