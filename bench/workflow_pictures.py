"""Whether a change of the code leaves every picture of the shipped toy workflows bit for bit as it
was.

`python -m bench.workflow_pictures record FOLDER [--pack DIR]` runs them all through a ComfyUI with
the pack of DIR (another checkout, say; default: this one) and keeps the pixels; `compare FOLDER
FOLDER` names those that differ. The workflow files are this checkout's in both, or those of
`--workflows DIR`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from devkit.client import run_prompt
from devkit.pack import ROOT
from devkit.workflow_format import to_api_prompt

from .command_line import bench_parser
from .server import pack_server

INDEX = "pictures.json"


def digest(picture: Image.Image) -> str:
    """Of the pixels alone: a PNG also holds the workflow, and how well it was compressed."""
    pixels = np.asarray(picture)
    return hashlib.sha256(f"{pixels.shape}{pixels.dtype}".encode() + pixels.tobytes()).hexdigest()


def toy_workflows(folder: Path) -> list[Path]:
    """The workflows that need no files of the user's."""
    return [
        path
        for path in sorted(folder.glob("*.json"))
        if '"MagicToyCheckpoint"' in path.read_text(encoding="utf-8")
    ]


def record(folder: Path, pack: Path, workflows: Path) -> None:
    """Runs every workflow and writes its pictures and their digests to `folder`."""
    # Another number of threads adds up in another order.
    os.environ["OMP_NUM_THREADS"] = "1"
    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as base, pack_server(Path(base), pack=pack) as server:
        info = server.info_with_pack()
        for path in toy_workflows(workflows):
            prompt = to_api_prompt(json.loads(path.read_text(encoding="utf-8")), info)
            for number, picture in enumerate(run_prompt(server, prompt)):
                content = server.fetch(picture)
                # By its place: the names of temporary files are random.
                name = f"{path.stem}/{number:03}.png"
                digests[name] = digest(Image.open(io.BytesIO(content)))
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
    (folder / INDEX).write_text(json.dumps(digests, indent=1, sort_keys=True), encoding="utf-8")
    print(f"{len(digests)} pictures in {folder}")


def compare(before: Path, after: Path) -> int:
    """The number of pictures that differ or that one side lacks; each is named."""
    first, second = (
        json.loads((folder / INDEX).read_text(encoding="utf-8")) for folder in (before, after)
    )
    different = sorted(
        name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
    )
    for name in different:
        print("differs:" if name in first and name in second else "is in one only:", name)
    print(f"{len(first.keys() | second.keys())} pictures compared, {len(different)} differ")
    return len(different)


def main() -> int:
    parser = bench_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--pack", type=Path, default=ROOT)
    recording.add_argument("--workflows", type=Path, default=ROOT / "workflows")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        record(options.folder, options.pack.resolve(), options.workflows)
        return 0
    return 1 if compare(options.before, options.after) else 0


if __name__ == "__main__":
    sys.exit(main())
