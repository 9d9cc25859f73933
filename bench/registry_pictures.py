"""Draws the icon and the banner of the Comfy Registry, docs/icon.png and docs/banner.png: `python
-m bench.registry_pictures`

Hat, scarf and shirt on three portraits, and one portrait with all of them. Drawn by the toy world's
own hand and not by a model: a sign of what the pack is for, no sample of what it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from devkit.pack import ROOT

from . import in_process  # noqa: F401 (before what follows)
from .command_line import bench_parser

# ruff: isort: split
from magicportrait.demo.portraits import Garment, Portrait, Pose, render
from magicportrait.host.pictures.captions import Lettering

ICON = 400
"""The most that the registry takes, in pixels."""
BANNER = (1260, 540)
"""21 : 9, as the registry shows it."""
GROUND, INK = (250, 224, 235), (44, 36, 44)
HAT = Garment("red", "dotted", "top")
SCARF = Garment("blue", "checkered")
SHIRT = Garment("purple", "striped")
COLOURS = 128
"""Of the files' palettes: nothing to see, and a quarter of the bytes."""


def result() -> Portrait:
    return Portrait(
        "woman",
        (238, 190, 150),
        "red",
        "long",
        SHIRT,
        "pink",
        hat=HAT,
        scarf=SCARF,
        expression="smiling",
        pose=Pose(0.0, 0.04, 1.0, -2),
    )


def references() -> list[Portrait]:
    """Each wears one of the three."""
    plain = Garment("white")
    return [
        Portrait("man", (198, 140, 98), "black", "short", plain, "purple", hat=HAT),
        Portrait("woman", (255, 224, 196), "blonde", "bob", plain, "green", scarf=SCARF),
        Portrait("man", (140, 90, 58), "brown", "short", SHIRT, "yellow"),
    ]


def tile(portrait: Portrait, side: int) -> Image.Image:
    """With round corners, RGBA; side: a multiple of 8."""
    pixels = (render(portrait, side).image * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels).convert("RGBA")
    mask = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), side // 2, fill=255)
    image.putalpha(mask.resize((side, side), Image.Resampling.LANCZOS))
    return image


def arrow(canvas: Image.Image, at: tuple[int, int], length: int = 52) -> None:
    """To the right; at: its left end."""
    x, y = at
    pen = ImageDraw.Draw(canvas)
    pen.line((x, y, x + length - 12, y), INK, 9)
    pen.polygon([(x + length, y), (x + length - 26, y - 21), (x + length - 26, y + 21)], INK)


def icon() -> Image.Image:
    portrait = result()
    # Nearer than in the banner: it is shown as small as 40 pixels.
    return tile(replace(portrait, pose=Pose(0.0, 0.05, 1.12, -2)), ICON)


def banner() -> Image.Image:
    canvas = Image.new("RGB", BANNER, GROUND)
    small, large, gap, left = 184, 448, 20, 64
    top = 232
    Lettering(76, INK).write(canvas, "MagicPortrait", (left - 4, 62))
    Lettering(27, INK).write(canvas, "things, styles and people from your pictures", (left, 160))
    for i, portrait in enumerate(references()):
        image = tile(portrait, small)
        canvas.paste(image, (left + i * (small + gap), top), image)
    end = left + 3 * small + 2 * gap
    arrow(canvas, (end + 22, top + small // 2))
    image = tile(result(), large)
    canvas.paste(image, (BANNER[0] - left - large, (BANNER[1] - large) // 2), image)
    return canvas


def save(image: Image.Image, path: Path) -> None:
    method = Image.Quantize.FASTOCTREE if image.mode == "RGBA" else Image.Quantize.MEDIANCUT
    few = image.quantize(COLOURS, method, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    print(f"wrote {path}, {path.stat().st_size / 1000:.0f} kB")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", metavar="DIR")
    folder = parser.parse_args(arguments).folder
    save(icon(), folder / "icon.png")
    save(banner(), folder / "banner.png")


if __name__ == "__main__":
    main()
