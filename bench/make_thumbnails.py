"""Runs the toy workflows and writes their thumbnails, workflows/<name>.jpg: `python -m
bench.make_thumbnails`

References first, then pictures, then layouts and cut-outs. A picture that is alone with its
references is shown large, with them set in; a strip of pictures without the references.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from devkit.client import Client, run_prompt
from devkit.pack import CACHE, ROOT
from devkit.workflow_format import to_api_prompt

from .command_line import bench_parser
from .server import pack_server

SIDE = 400
INSET, BORDER, GAP = 100, 3, 8
WORKFLOWS = ROOT / "workflows"
# These need models that cannot come with the pack.
BORROWERS = {
    "MagicFace-2-three-concepts": (
        "MagicFace-SD1.5-three-concepts",
        "MagicFace-SDXL-three-concepts",
    ),
    "MagicStyle-2-step-by-step": ("MagicStyle-SD1.5-style-transfer",),
    "MagicFace-4-mask-to-comparison": (
        "MagicFace-SD1.5-mask-by-word-SAM",
        "MagicFace-SD1.5-mask-by-word-SAM3",
    ),
    "MagiCapture-1-learn-person-and-style": (
        "MagiCapture-SD1.5-1-train",
        "MagiCapture-SD1.5-2-use",
        "Portrait-Restore-SD1.5",
    ),
}
PICTURES_OF_A_SET = 5
"""Of the subject and of the style in the training workflow: one of each is shown."""


def results(
    server: Client, workflow: dict[str, Any]
) -> tuple[list[Image.Image], list[Image.Image], list[Image.Image]]:
    """The references, pictures and layouts (or cut-outs) that a workflow shows and saves, told
    apart by their file names."""
    prompt = to_api_prompt(workflow, server.object_info())
    training = any(data["class_type"] == "MagiCaptureTrain" for data in prompt.values())
    left_out = {"MaskPreview", "LossGraphNode", *(("PreviewImage",) if training else ())}
    prompt = {node: data for node, data in prompt.items() if data["class_type"] not in left_out}
    references: list[Image.Image] = []
    pictures: list[Image.Image] = []
    layouts: list[Image.Image] = []
    for file in run_prompt(server, prompt):
        name = file["filename"].rsplit("_", 2)[0]
        if name.endswith("_grid"):
            continue
        kind = references if file["type"] == "temp" or name.endswith("_references") else pictures
        kind = (
            layouts if name.endswith(("_concepts_layout", "_overlay", "_cutout", "_heat")) else kind
        )
        kind.append(Image.open(io.BytesIO(server.fetch(file))).convert("RGB"))
    if any(data["class_type"] == "MagicCorrespondenceMap" for data in prompt.values()):
        # They come reference by reference: those of the first picture are shown.
        layouts = layouts[:: len(pictures)]
    if training:
        references = references[: 2 * PICTURES_OF_A_SET : PICTURES_OF_A_SET]
    return references, pictures, layouts


def squares(images: list[Image.Image]) -> list[Image.Image]:
    """Cuts what is wide into squares, and the legend off what is high."""
    tiles = []
    for image in images:
        side = min(image.size)
        # The last tile of a strip whose tiles are not quite square reaches to its end.
        count = round(image.width / side)
        tiles += [
            image.crop(
                (round(i * image.width / count), 0, round((i + 1) * image.width / count), side)
            )
            for i in range(count)
        ]
    return tiles


def thumbnail(
    references: list[Image.Image], pictures: list[Image.Image], layouts: list[Image.Image]
) -> Image.Image:
    """A square of 2 x 2 or 3 x 3 tiles, or one large picture."""
    first, drawn = squares(references), squares(pictures)
    if len(pictures) == 1 and not layouts:
        if len(drawn) > 1:
            first = []
        elif len(first) == 2:
            return with_insets(drawn[0], *first)
    columns = 2 if len(first) + len(drawn) == 4 or len(first) < 3 else 3
    each = (columns**2 - len(first)) // (2 if layouts else 1)
    tiles = [*first, *drawn[:each], *squares(layouts)[:each]]
    side = SIDE // columns
    sheet = Image.new("RGB", (side * columns, side * columns), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(
            tile.resize((side, side), Image.Resampling.LANCZOS),
            (i % columns * side, i // columns * side),
        )
    return sheet


def with_insets(picture: Image.Image, left: Image.Image, right: Image.Image) -> Image.Image:
    """The picture, with two small ones in its upper corners."""
    sheet = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    for tile, x in ((left, GAP), (right, SIDE - INSET - GAP)):
        inner = INSET - 2 * BORDER
        sheet.paste(
            ImageOps.expand(tile.resize((inner, inner), Image.Resampling.LANCZOS), BORDER, "white"),
            (x, GAP),
        )
    return sheet


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="default: as for dev.py")
    parser.add_argument(
        "names",
        nargs="*",
        default=[path.stem for path in sorted(WORKFLOWS.glob("*.json"))],
        help="default: all",
    )
    options = parser.parse_args()
    borrowers = {borrower for several in BORROWERS.values() for borrower in several}
    with pack_server(CACHE / "comfyui", options.comfyui) as server:
        for name in sorted(set(options.names) - borrowers):
            workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
            picture = thumbnail(*results(server, workflow))
            for target in (name, *BORROWERS.get(name, ())):
                picture.save(WORKFLOWS / f"{target}.jpg", quality=88)
                print(f"wrote workflows/{target}.jpg")


if __name__ == "__main__":
    main()
