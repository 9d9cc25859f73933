"""Runs the toy workflows and writes their thumbnails, workflows/<name>.jpg: references above, pictures below. `--help` for options."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import dev  # noqa: E402 (lies in the project's folder)
from workflow_format import to_api_prompt  # noqa: E402

SIDE = 400
# The workflows for other models cannot run everywhere: they borrow a thumbnail.
BORROWED = {"magicface_three_concepts_sd15": "magicface_three_concepts", "magicface_three_concepts_sdxl": "magicface_three_concepts"}
# Written by the SaveImage nodes beside the pictures, and shown above or below them.
ABOVE, BELOW = ("_references",), ("_layout", "_overlay")


def pictures_of(server: dev.Server, workflow: dict[str, Any]) -> dict[str, list[Image.Image]]:
    """What each SaveImage of a workflow writes, by its prefix; and the pictures of PreviewImage nodes as '_references'."""
    prompt = to_api_prompt(workflow, server.object_info())
    saved: dict[str, list[Image.Image]] = {}
    for reference in dev.run_prompt(server, prompt):
        prefix = "_references" if reference["type"] == "temp" else reference["filename"].rsplit("_", 2)[0]
        saved.setdefault(prefix, []).append(Image.open(io.BytesIO(server.fetch(reference))).convert("RGB"))
    return saved


def row(images: list[Image.Image]) -> Image.Image:
    joined = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    for i, image in enumerate(images):
        joined.paste(image, (sum(before.width for before in images[:i]), 0))
    return joined


def thumbnail(saved: dict[str, list[Image.Image]]) -> Image.Image:
    """Rows of equal width, cut to a square's height in all: references, pictures, layouts."""
    rank = {**dict.fromkeys(ABOVE, 0), **dict.fromkeys(BELOW, 2)}
    rows = []
    for prefix, images in sorted(saved.items(), key=lambda item: next((rank[end] for end in rank if item[0].endswith(end)), 1)):
        shown = images[:2] if len(saved) <= 2 else images[:3]
        rows.append(row(shown))
    scaled = [image.resize((SIDE, round(image.height * SIDE / image.width)), Image.Resampling.LANCZOS) for image in rows]
    sheet = Image.new("RGB", (SIDE, sum(image.height for image in scaled)), "white")
    top = 0
    for image in scaled:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="default: as for dev.py")
    parser.add_argument("names", nargs="*", help="workflows without .json; default: all that run on the toy checkpoint")
    options = parser.parse_args()
    folder = ROOT / "workflows"
    names = options.names or sorted({path.stem for path in folder.glob("*.json")} - set(BORROWED))
    host = dev.find_comfyui(options.comfyui)
    with dev.Server(host, Path(sys.executable), dev.CACHE / "thumbnails", cpu=dev.needs_cpu_flag(Path(sys.executable))) as server:
        for name in names:
            workflow = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            picture = thumbnail(pictures_of(server, workflow))
            for target in (name, *(borrower for borrower, lender in BORROWED.items() if lender == name)):
                picture.save(folder / f"{target}.jpg", quality=88)
                print(folder / f"{target}.jpg", picture.size)


if __name__ == "__main__":
    main()
