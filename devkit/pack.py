"""This project as a folder and as a package."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CACHE = ROOT / ".cache"

PACK_NAME = "ComfyUI-MagicPortrait"

PACK_NODE = "MagicFaceApply"


WINDOWS = os.name == "nt"


class DevError(Exception):
    """Something the user can act on: printed without a traceback."""


def packed_files() -> list[str]:
    """What the registry gets, as paths in this folder: the tracked files that .comfyignore leaves,
    in git's order. DevError where this is no checkout of git."""
    every = ("git", "-C", str(ROOT), "-c", "core.quotePath=off", "ls-files", "--cached")
    try:
        tracked, ignored = (
            subprocess.run(
                [*every, *options], check=True, capture_output=True, encoding="utf-8"
            ).stdout.splitlines()
            for options in ((), ("--ignored", "--exclude-from=.comfyignore"))
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise DevError(f"git does not list the files of {ROOT}: {error}") from error
    left_out = set(ignored)
    return [file for file in tracked if file not in left_out]


def load_pack() -> None:
    """Makes this folder importable as the package `magicportrait`, whatever it is called: for tests
    and benchmarks."""
    if "magicportrait" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "magicportrait", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules["magicportrait"] = package
    spec.loader.exec_module(package)


def link_pack(link: Path, pack: Path) -> None:
    """Makes the pack, or a part of it, appear under another name: in a server's custom_nodes, or as
    the package that type checkers read. The link lies inside the pack, which is harmless: ComfyUI
    looks only at the top level of custom_nodes."""
    if link.exists() and link.samefile(pack):
        return
    if link.is_symlink():
        link.unlink()
    elif os.path.lexists(link):
        # A junction whose target is gone does not exist for Path, and is no symlink.
        try:
            os.rmdir(link)  # removes a Windows junction without touching its target
        except OSError:
            shutil.rmtree(link)
    try:
        if WINDOWS:
            subprocess.run(
                ["cmd", "/c", "mklink", "/J", str(link), str(pack)], check=True, capture_output=True
            )
        else:
            link.symlink_to(pack, target_is_directory=True)
    except (OSError, subprocess.CalledProcessError):
        shutil.copytree(
            pack, link, ignore=shutil.ignore_patterns(".*", "__pycache__", "output", "training")
        )


def run_command(command: Callable[[], int]) -> int:
    """Runs one of our commands as a program: what the user can act on is printed without a
    traceback, and SIGTERM ends the server as Ctrl-C does, where the default action would leave it
    running."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # In the background of a shell it is ignored, also by what we start and stop in this way.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What a child says may have letters that a redirected stdout of Windows has not.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return command()
    except DevError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
