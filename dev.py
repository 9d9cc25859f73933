"""Runs this pack in a headless ComfyUI: `python dev.py demo`, `serve` or `test`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

# Standard library only, as all that runs before .venv is there.
from devkit.checks import test
from devkit.comfyui import find_or_install_comfyui
from devkit.environment import prepare_python, run_module
from devkit.pack import ROOT, DevError, run_command


def demo(options: argparse.Namespace) -> int:
    if not options.workflow.is_file():
        raise DevError(f"cannot read {options.workflow}: there is no such file")
    if not (options.pack / "__init__.py").is_file():
        raise DevError(f"{options.pack} is not this pack: there is no __init__.py in it")
    return run_on_host(
        options,
        "devkit.demo",
        "--workflow",
        str(options.workflow.resolve()),
        "--output",
        str(options.output.resolve()),
        "--pack",
        str(options.pack.resolve()),
    )


def serve(options: argparse.Namespace) -> int:
    return run_on_host(options, "devkit.serve", "--port", str(options.port))


def run_on_host(options: argparse.Namespace, module: str, *arguments: str) -> int:
    """Runs one of our modules where ComfyUI's requirements are, after whatever set-up is
    missing."""
    host = find_or_install_comfyui(options.comfyui)
    python = prepare_python(options.python, host)
    return run_module(python, module, ["--comfyui", str(host), *arguments])


def interpreter(name: str) -> Path:
    # On Windows a Path is refused before Python 3.12.
    if program := shutil.which(str(Path(name).expanduser())):
        return Path(os.path.abspath(program))
    raise argparse.ArgumentTypeError(f"{name} is no program")


def parse_arguments() -> argparse.Namespace:
    environment = (
        "Without --python, .venv in the project's folder is created and filled on the first start"
        " and reused afterwards. A torch that is already in it is kept, whatever its version: to"
        " run on a GPU, install your own build there first."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--comfyui",
        type=Path,
        metavar="DIR",
        help="default: COMFYUI_PATH, the one around this pack, comfy-cli's",
    )
    common.add_argument(
        "--python",
        type=interpreter,
        metavar="EXE",
        help="used as it is: must have ComfyUI's requirements",
    )
    parser = argparse.ArgumentParser(description=__doc__, epilog=environment)
    commands = parser.add_subparsers(dest="command", required=True)
    summary = "run a workflow and save its pictures"
    command = commands.add_parser(
        "demo", parents=[common], help=summary, description=summary, epilog=environment
    )
    command.add_argument(
        "--workflow",
        type=Path,
        default=ROOT / "workflows" / "MagicFace-2-three-concepts.json",
        metavar="FILE",
    )
    command.add_argument("--output", type=Path, default=ROOT / "output", metavar="DIR")
    command.add_argument(
        "--pack",
        type=Path,
        default=ROOT,
        metavar="DIR",
        help="what ComfyUI gets; default: this folder, else an unpacked archive of it",
    )
    command.set_defaults(run=demo)
    summary = "start ComfyUI with this pack for the browser"
    command = commands.add_parser(
        "serve", parents=[common], help=summary, description=summary, epilog=environment
    )
    command.add_argument("--port", type=int, default=8188)
    command.set_defaults(run=serve)
    summary = "check formatting, types and JavaScript, and run every test"
    command = commands.add_parser(
        "test", parents=[common], help=summary, description=summary, epilog=environment
    )
    command.add_argument("-k", metavar="EXPR", help="only the tests that match, as for pytest")
    command.add_argument(
        "--quick", action="store_true", help="only a selection of the tests in ComfyUI"
    )
    command.set_defaults(run=test)
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    code: int = options.run(options)
    return code


if __name__ == "__main__":
    sys.exit(run_command(main))
