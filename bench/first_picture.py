"""Draws README's first picture through a server: `python -m bench.first_picture`

The template with three concepts as it is shipped: its references on the left; on the right what the
model draws of the prompt alone, and below it the same seed with MagicFace.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from devkit.client import Client, run_prompt
from devkit.pack import CACHE, ROOT
from devkit.workflow_format import to_api_prompt

from . import in_process  # noqa: F401 (before what follows)
from .command_line import bench_parser
from .server import fetch_picture, pack_server

# ruff: isort: split
from magicportrait.host.pictures.captions import Lettering

WORKFLOW = ROOT / "workflows" / "MagicFace-2-three-concepts.json"
REFERENCE, TILE, GAP, LINE = 192, 224, 8, 34
BETWEEN = 56
"""From the references to the results."""
TITLE, CAPTION = Lettering(21, (0, 0, 0)), Lettering(15, (40, 40, 40))
Tiles = list[Image.Image]


def run_pictures(client: Client, prompt: dict[str, Any], prefix: str) -> Tiles:
    """The pictures that a run saves under a name."""
    files = [f for f in run_prompt(client, prompt) if f["filename"].startswith(prefix)]
    return [fetch_picture(client, file) for file in files]


def nodes_of(prompt: dict[str, Any], kind: str) -> dict[str, Any]:
    return {node: data["inputs"] for node, data in prompt.items() if data["class_type"] == kind}


def pictures(client: Client) -> tuple[dict[str, Image.Image], Tiles, Tiles, str]:
    """References by their phrases, results without and with them, and the prompt."""
    prompt = to_api_prompt(json.loads(WORKFLOW.read_text("utf-8")), client.object_info())
    [apply] = nodes_of(prompt, "MagicFaceApply").values()
    [(save, results)] = [
        (node, inputs)
        for node, inputs in nodes_of(prompt, "SaveImage").items()
        if not inputs["filename_prefix"].endswith("_layout")
    ]
    results["filename_prefix"] = "first_picture_with"
    references = {}
    for node, inputs in nodes_of(prompt, "MagicFaceConcept").items():
        name = f"first_picture_reference_{node}"
        prompt[name] = {
            "class_type": "SaveImage",
            "inputs": {"images": inputs["image"], "filename_prefix": name},
        }
        [references[inputs["phrase"]]] = run_pictures(client, prompt_of(prompt, name), name)
    magic = run_pictures(client, prompt_of(prompt, save), "first_picture_with")
    del apply["concepts"]
    results["filename_prefix"] = "first_picture_without"
    plain = run_pictures(client, prompt_of(prompt, save), "first_picture_without")
    return references, plain, magic, apply["prompt"]


def prompt_of(prompt: dict[str, Any], node: str) -> dict[str, Any]:
    """The part of a prompt that a node needs."""
    part = {node: prompt[node]}
    for value in prompt[node]["inputs"].values():
        if isinstance(value, list):
            part |= prompt_of(prompt, value[0])
    return part


def sheet(
    references: dict[str, Image.Image], plain: Tiles, magic: Tiles, prompt: str
) -> Image.Image:
    """References on the left, the two rows of results on the right; prompt: of both."""
    left = len(references) * (REFERENCE + GAP) - GAP + BETWEEN
    width = left + len(magic) * (TILE + GAP) - GAP
    height = 2 * (LINE + TILE) + 2 * GAP
    canvas = Image.new("RGB", (width, height), "white")
    top = (height - REFERENCE) // 2
    TITLE.write(canvas, "three references", (0, top - LINE + 4))
    for i, (phrase, image) in enumerate(references.items()):
        x = i * (REFERENCE + GAP)
        canvas.paste(image.resize((REFERENCE, REFERENCE), Image.Resampling.LANCZOS), (x, top))
        TITLE.write(canvas, phrase, (x + REFERENCE / 2, top + REFERENCE + GAP), "ma")
    rows = (
        (f'the model alone: "{prompt}"', plain, CAPTION),
        ("with MagicFace, same seed", magic, TITLE),
    )
    for row, (caption, tiles, lettering) in enumerate(rows):
        y = row * (LINE + TILE + 2 * GAP)
        lettering.write(canvas, caption, (left, y + 4))
        for i, tile in enumerate(tiles):
            large = tile.resize((TILE, TILE), Image.Resampling.LANCZOS)
            canvas.paste(large, (left + i * (TILE + GAP), y + LINE))
    return canvas


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="default: as for dev.py")
    parser.add_argument("--file", type=Path, default=ROOT / "docs" / "first_picture.png")
    options = parser.parse_args()
    with pack_server(CACHE / "comfyui", options.comfyui) as server:
        references, plain, magic, prompt = pictures(server)
    sheet(references, plain, magic, prompt).save(options.file)
    print(f"wrote {options.file}")


if __name__ == "__main__":
    main()
