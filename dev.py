"""Runs this pack in a headless ComfyUI: `python dev.py demo`, `serve` or `test`. Standard library
only, as all of devkit/ that runs before .venv is there."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import sys
from pathlib import Path

from devkit.demo import demo, serve
from devkit.pack import ROOT, DevError
from devkit.tests import test
from devkit.workflow_format import WorkflowError


def interpreter(name: str) -> Path:
    # On Windows a Path is refused before Python 3.12.
    if found := shutil.which(str(Path(name).expanduser())):
        return Path(os.path.abspath(found))
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
        default=ROOT / "workflows" / "magicface_three_concepts.json",
        metavar="FILE",
    )
    command.add_argument("--output", type=Path, default=ROOT / "output", metavar="DIR")
    command.set_defaults(run=demo)
    summary = "start ComfyUI with this pack for the browser"
    command = commands.add_parser(
        "serve", parents=[common], help=summary, description=summary, epilog=environment
    )
    command.add_argument("--port", type=int, default=8188)
    command.set_defaults(run=serve)
    summary = "lint, type check and run every test"
    command = commands.add_parser(
        "test", parents=[common], help=summary, description=summary, epilog=environment
    )
    command.add_argument("-k", metavar="EXPR", help="only the tests that match, as for pytest")
    command.set_defaults(run=test)
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    # Ends the server as Ctrl-C does: the default action would leave it running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # What a child says may have letters that a redirected stdout of Windows has not.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code: int = options.run(options)
        return code
    except (DevError, WorkflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
