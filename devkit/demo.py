"""The command `demo`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from devkit.client import run_prompt
from devkit.comfyui import find_or_install_comfyui, host_version
from devkit.environment import needs_cpu_flag, prepare_python
from devkit.pack import CACHE, PACK_NAME, DevError
from devkit.server import Server
from devkit.workflow_format import to_api_prompt


def host_and_python(options: argparse.Namespace) -> tuple[Path, Path]:
    host = find_or_install_comfyui(options.comfyui)
    return host, prepare_python(options.python, host)


def demo(options: argparse.Namespace) -> int:
    try:
        workflow = json.loads(options.workflow.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DevError(f"cannot read {options.workflow}: {error}") from error
    host, python = host_and_python(options)
    cpu = needs_cpu_flag(python)
    print(f"ComfyUI {host_version(host)} in {host}, on the {'CPU' if cpu else 'GPU'}", flush=True)
    with Server(host, python, CACHE / "comfyui", cpu=cpu) as server:
        pictures = run_prompt(server, to_api_prompt(workflow, server.info_with_pack()))
        options.output.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            path = options.output / Path(picture["filename"]).name
            path.write_bytes(server.fetch(picture))
            print(path)
    return 0


def serve(options: argparse.Namespace) -> int:
    host, python = host_and_python(options)
    cpu = needs_cpu_flag(python)
    with Server(
        host, python, CACHE / "comfyui", cpu=cpu, port=options.port, log_to_file=False
    ) as server:
        server.info_with_pack()
        print(f"\nopen {server.url} (workflows: Templates > {PACK_NAME}; Ctrl-C stops)", flush=True)
        return server.process.wait()
