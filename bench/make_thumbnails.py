"""Runs the toy workflows and writes their thumbnails, workflows/<name>.jpg: `python -m
bench.make_thumbnails`

References first, then pictures, then layouts and cut-outs. A picture that is alone with its
references is shown large, with them set in; a strip of pictures without the references. Workflows
for models that cannot come with the pack show what they do with the toy, and say what they need.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from devkit.client import Client, run_prompt
from devkit.pack import CACHE, ROOT
from devkit.workflow_format import to_api_prompt

from . import in_process  # noqa: F401 (before what follows)
from .command_line import bench_parser
from .server import fetch_picture, pack_server

# ruff: isort: split
from magicportrait.demo import portraits

SIDE = 400
INSET, BORDER, GAP = 100, 3, 8
LABEL_SIZE, LABEL_PADDING = 26, 8
LABEL_COLOURS = ((32, 32, 36), (255, 255, 255))
MASK_COLOUR = (230, 159, 0)
REGION_COLOURS = ((230, 159, 0), (0, 114, 178))
SMALL_FACE = 36
"""Pixels that a face has before it is restored."""
WORKFLOWS = ROOT / "workflows"
PICTURES_OF_A_SET = 5
"""Of the subject and of the style in the training workflow."""
_SETS = {"MagiCaptureSubject": "thumbnail_subject", "MagiCaptureStyle": "thumbnail_style"}
"""What their pictures are saved as."""

Tiles = list[Image.Image]


@dataclass(frozen=True)
class Output:
    """What a workflow shows and saves. references: what goes in; pictures: what comes out; layouts:
    also cut-outs and heat maps."""

    references: Tiles
    pictures: Tiles
    layouts: Tiles


def results(server: Client, workflow: dict[str, Any]) -> Output:
    """Told apart by their file names."""
    prompt = to_api_prompt(workflow, server.object_info())
    training = any(data["class_type"] == "MagiCaptureTrain" for data in prompt.values())
    left_out = {"MaskPreview", "LossGraphNode", *(("PreviewImage",) if training else ())}
    prompt = {node: data for node, data in prompt.items() if data["class_type"] not in left_out}
    if training:
        _save_training_pictures(prompt)
    else:
        _save_references(prompt)
    output = Output([], [], [])
    sets: dict[str, Tiles] = {kind: [] for kind in _SETS.values()}
    for file in run_prompt(server, prompt):
        name = file["filename"].rsplit("_", 2)[0]
        if name.endswith("_grid"):
            continue
        image = fetch_picture(server, file)
        if name in sets:
            sets[name].append(image)
        elif name.endswith("_references"):
            output.references.insert(0, image)
        elif file["type"] == "temp":
            # Of a training: what the masks leave of its pictures.
            if not training:
                output.references.append(image)
        elif name.endswith(("_concepts_layout", "_overlay", "_cutout", "_heat")):
            output.layouts.append(image)
        else:
            output.pictures.append(image)
    output.references.extend(image for pictures in sets.values() for image in pictures)
    if any(data["class_type"] == "MagicCorrespondenceMap" for data in prompt.values()):
        # They come reference by reference: those of the first picture are shown.
        return Output(output.references, output.pictures, output.layouts[:: len(output.pictures)])
    return output


def _save_training_pictures(prompt: dict[str, Any]) -> None:
    """Adds what saves the pictures that are learned from."""
    for node in [n for n, data in prompt.items() if data["class_type"] in _SETS]:
        name = _SETS[prompt[node]["class_type"]]
        inputs = {"images": prompt[node]["inputs"]["images"], "filename_prefix": name}
        prompt[f"save {name}"] = {"class_type": "SaveImage", "inputs": inputs}


def _save_references(prompt: dict[str, Any]) -> None:
    """Adds what saves the images of all concepts, or reference latents, side by side."""
    images = [
        data["inputs"]["image"]
        for data in prompt.values()
        if data["class_type"] == "MagicFaceConcept" and "image" in data["inputs"]
    ]
    images += [
        prompt[data["inputs"]["latent"][0]]["inputs"]["pixels"]
        for data in prompt.values()
        if data["class_type"] == "ReferenceLatent"
    ]
    if not images:
        return
    strip = images[0]
    for number, image in enumerate(images[1:]):
        options = {"direction": "right", "match_image_size": True, "spacing_width": 0}
        inputs = {"image1": strip, "image2": image, **options, "spacing_color": "white"}
        prompt[f"strip {number}"] = {"class_type": "ImageStitch", "inputs": inputs}
        strip = [f"strip {number}", 0]
    inputs = {"images": strip, "filename_prefix": "thumbnail_references"}
    prompt["save the strip"] = {"class_type": "SaveImage", "inputs": inputs}


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


def thumbnail(output: Output) -> Image.Image:
    """A square of 2 x 2 or 3 x 3 tiles, or one large picture."""
    first, second = squares(output.references), squares(output.pictures)
    pictures, layouts = output.pictures, output.layouts
    if len(pictures) == 1 and not layouts:
        if len(second) > 1:
            first = []
        elif len(first) == 2:
            return with_insets(second[0], *first)
    columns = 2 if len(first) + len(second) == 4 or len(first) < 3 else 3
    each = (columns**2 - len(first)) // (2 if layouts else 1)
    return sheet_of([*first, *second[:each], *squares(layouts)[:each]], columns)


def two_pictures_of_two(output: Output) -> Image.Image:
    """The first and the third: the toy knows portraits of one person, and some have only one."""
    return sheet_of(squares([output.pictures[0], output.pictures[2]]))


def sheet_of(tiles: Tiles, columns: int = 2) -> Image.Image:
    side = SIDE // columns
    sheet = Image.new("RGB", (side * columns, side * columns), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(
            tile.resize((side, side), Image.Resampling.LANCZOS),
            (i % columns * side, i // columns * side),
        )
    return sheet


def with_insets(
    picture: Image.Image, left: Image.Image, right: Image.Image | None = None
) -> Image.Image:
    """The picture, with one or two small ones in its upper corners."""
    sheet = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    for tile, x in ((left, GAP), (right, SIDE - INSET - GAP)):
        if tile is None:
            continue
        inner = INSET - 2 * BORDER
        sheet.paste(
            ImageOps.expand(tile.resize((inner, inner), Image.Resampling.LANCZOS), BORDER, "white"),
            (x, GAP),
        )
    return sheet


def with_label(picture: Image.Image, text: str) -> Image.Image:
    """What the workflow needs, in the lower right corner: the page covers the upper left one."""
    sheet = picture.copy()
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(LABEL_SIZE)
    left, top, right, bottom = (round(edge) for edge in draw.textbbox((0, 0), text, font))
    width, height = right - left + 2 * LABEL_PADDING, bottom - top + 2 * LABEL_PADDING
    x, y = sheet.width - width - GAP, sheet.height - height - GAP
    ground, ink = LABEL_COLOURS
    draw.rounded_rectangle((x, y, x + width, y + height), 8, ground)
    draw.text((x + LABEL_PADDING - left, y + LABEL_PADDING - top), text, ink, font)
    return sheet


def mask_from_word(output: Output) -> Image.Image:
    """A reference, its mask over it, what is cut out, and the picture that it goes into."""
    portrait = portraits.sample_portrait(183, "cartoon")
    rendering = portraits.render(portrait, SIDE // 2)
    mask = rendering.masks["hat"][..., None]
    tint = np.asarray(MASK_COLOUR) / 255
    overlay = rendering.image * (1 - 0.65 * mask) + 0.65 * mask * tint
    cut_out = rendering.image * (0.25 + 0.75 * mask)
    tiles = [_as_picture(array) for array in (rendering.image, overlay, cut_out)]
    return sheet_of([*tiles, *squares(output.pictures)[:1]])


def restored_face() -> Image.Image:
    """One portrait, on the left with few pixels, on the right with all."""
    sharp = _as_picture(portraits.render(portraits.sample_portrait(594, "cartoon"), SIDE).image)
    small = sharp.resize((SMALL_FACE, SMALL_FACE), Image.Resampling.BOX)
    sheet = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    sheet.paste(sharp.crop((SIDE // 2, 0, SIDE, SIDE)), (SIDE // 2, 0))
    ImageDraw.Draw(sheet).line((SIDE // 2, 0, SIDE // 2, SIDE), "white", 4)
    return sheet


def two_regions() -> Image.Image:
    """Two people, each alone; both in one picture, and whose each place of it is."""
    scene = portraits.sample_scene(12, "cartoon")
    alone = [
        replace(person, pose=portraits.sample_portrait(1).pose)
        for person in (scene.left, scene.right)
    ]
    rendering = portraits.render_scene(scene, SIDE // 2)
    regions = rendering.image.copy()
    for person, colour in enumerate(REGION_COLOURS):
        parts = [
            mask
            for (owner, part), mask in rendering.masks.items()
            if owner == person and part != "background"
        ]
        mask = np.sum(parts, axis=0)[..., None]
        regions = regions * (1 - 0.6 * mask) + 0.6 * mask * np.asarray(colour) / 255
    tiles = [portraits.render(person, SIDE // 2).image for person in alone]
    return sheet_of([_as_picture(array) for array in (*tiles, rendering.image, regions)])


def _as_picture(image: Any) -> Image.Image:  # H W 3 in 0..1
    return Image.fromarray((image * 255).round().astype(np.uint8))


def of_training(output: Output) -> Output:
    """Of a training: one picture of the subject, one of the style, and the pictures."""
    return Output(
        output.references[: 2 * PICTURES_OF_A_SET : PICTURES_OF_A_SET], output.pictures, []
    )


def sweep(output: Output) -> Image.Image:
    """Of several strengths of one style: portrait and style, the least and the most of it."""
    strengths = squares(output.pictures)
    tiles = [*squares(output.references), strengths[0], strengths[-1]]
    texts = ("portrait", "style", "beta 0", "beta 0.8")
    halves = [tile.resize((SIDE // 2,) * 2, Image.Resampling.LANCZOS) for tile in tiles]
    return sheet_of([with_label(tile, text) for tile, text in zip(halves, texts, strict=True)])


def training_pictures(output: Output) -> Image.Image:
    subject, style = output.references[:2], output.references[PICTURES_OF_A_SET:][:2]
    return sheet_of([*subject, *style])


Draw = Callable[[Output], Image.Image]

# What is drawn from the pictures of each toy workflow.
DRAWINGS: dict[str, dict[str, Draw]] = {
    "MagicFace-2-three-concepts": {
        "MagicFace-SD1.5-three-concepts": lambda output: with_label(thumbnail(output), "for SD1.5"),
        "MagicFace-SD1.5-a-LoRA-for-each-phrase": lambda output: with_label(
            thumbnail(output), "for SD1.5, LoRAs"
        ),
        "MagicFace-SDXL-three-concepts": lambda output: with_label(thumbnail(output), "for SDXL"),
        "MagicFace-Flux-three-concepts": lambda output: with_label(thumbnail(output), "for Flux"),
        "MagicFace-Qwen-Image-three-concepts": lambda output: with_label(
            thumbnail(output), "for Qwen-Image"
        ),
        "MagicFace-Z-Image-three-concepts": lambda output: with_label(
            thumbnail(output), "for Z-Image"
        ),
    },
    "MagicFace-1-one-concept": {
        "MagicFace-SD1.5-mask-by-word-SAM": lambda output: with_label(
            mask_from_word(output), "for SD1.5, SAM"
        ),
        "MagicFace-SD1.5-mask-by-word-SAM3": lambda output: with_label(
            mask_from_word(output), "for SD1.5, SAM 3"
        ),
    },
    "MagicFace-6-two-people": {
        "MagicFace-6-two-people": two_pictures_of_two,
        "MagicFace-SDXL-two-people": lambda output: with_label(
            two_pictures_of_two(output), "for SDXL"
        ),
    },
    # Three references and the picture, without its layout.
    "MagicFace-8-on-an-edit-model": {
        "MagicFace-8-on-an-edit-model": lambda output: sheet_of(
            [*squares(output.references[:1]), output.pictures[0]]
        ),
    },
    "MagicStyle-2-step-by-step": {
        "MagicStyle-SD1.5-style-transfer": lambda output: with_label(
            thumbnail(output), "for SD1.5"
        ),
    },
    "MagicStyle-4-how-much-style": {"MagicStyle-4-how-much-style": sweep},
    "MagicStyle-7-transformer-step-by-step": {
        "MagicStyle-Flux-style-transfer": lambda output: with_label(thumbnail(output), "for Flux"),
        "MagicStyle-Qwen-Image-style-transfer": lambda output: with_label(
            thumbnail(output), "for Qwen-Image"
        ),
        "MagicStyle-Z-Image-style-transfer": lambda output: with_label(
            thumbnail(output), "for Z-Image"
        ),
    },
    "MagicStyle-9-edit-by-words": {
        "MagicStyle-9-edit-by-words": lambda output: with_insets(
            output.pictures[0], output.references[0]
        ),
    },
    "MagiCapture-1-learn-person-and-style": {
        "MagiCapture-1-learn-person-and-style": lambda output: thumbnail(of_training(output)),
        "MagiCapture-SD1.5-1-train": lambda output: with_label(
            training_pictures(output), "for SD1.5: train"
        ),
        "MagiCapture-Flux-train": lambda output: with_label(
            training_pictures(output), "for Flux: train"
        ),
        "MagiCapture-Z-Image-train": lambda output: with_label(
            training_pictures(output), "for Z-Image: train"
        ),
        "MagiCapture-SD1.5-2-use": lambda output: with_label(
            sheet_of(squares(output.pictures)), "for SD1.5: use"
        ),
        "Portrait-Restore-SD1.5": lambda _: with_label(restored_face(), "for SD1.5, GFPGAN"),
    },
    "MagiCapture-2-on-a-transformer": {
        "MagiCapture-2-on-a-transformer": lambda output: thumbnail(of_training(output)),
    },
}

# Of models that do what no toy does: drawn by the renderer of the toy world.
RENDERINGS: dict[str, Callable[[], Image.Image]] = {
    "MagicFace-Qwen-Image-Edit-regions": lambda: with_label(two_regions(), "for Qwen-Image-Edit"),
}


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="default: as for dev.py")
    parser.add_argument("names", nargs="*", help="of toy workflows; default: all")
    options = parser.parse_args()
    own = {path.stem for path in WORKFLOWS.glob("*.json")}
    own -= {name for several in DRAWINGS.values() for name in several} - DRAWINGS.keys()
    names = set(options.names or own)
    for name in sorted(names & RENDERINGS.keys()):
        RENDERINGS[name]().save(WORKFLOWS / f"{name}.jpg", quality=86)
        print(f"wrote workflows/{name}.jpg")
    if not (of_toy := names - RENDERINGS.keys()):
        return
    with pack_server(CACHE / "comfyui", options.comfyui) as server:
        for name in sorted(of_toy):
            workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
            output = results(server, workflow)
            for target, draw in {name: thumbnail, **DRAWINGS.get(name, {})}.items():
                draw(output).save(WORKFLOWS / f"{target}.jpg", quality=86)
                print(f"wrote workflows/{target}.jpg")


if __name__ == "__main__":
    main()
