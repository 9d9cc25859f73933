"""Folders of drawn pictures in the place of a user's own, as the suites of bench/suites read
them."""

from __future__ import annotations

from pathlib import Path

from .toy_references import reference_sets

# ruff: isort: split
import numpy as np
import torch

from magicportrait.demo import captures
from magicportrait.demo.portraits import STYLES, Style, render, sample_portrait
from magicportrait.host.pictures.conversion import as_image


def draw_concept(index: int, folder: Path) -> None:
    """A reference set as a concept folder of MagicFace: image/ and mask/."""
    for part, portrait in reference_sets()[index].items():
        rendering = render(portrait)
        _save(rendering.image, folder / "image" / f"{part}.png")
        _save(rendering.masks[part], folder / "mask" / f"{part}.png")


def draw_pair(index: int, folder: Path) -> None:
    """A portrait in content/, and another one in another style in style/."""
    content = render(sample_portrait(2 * index, "cartoon"))
    style = render(sample_portrait(2 * index + 1, other_style(index)))
    _save(content.image, folder / "content" / "content.png")
    _save(style.image, folder / "style" / "style.png")


def draw_capture(index: int, folder: Path) -> None:
    """Pictures of a person in subject/ and of a style in style/, with their head masks in mask/, as
    MagiCapture takes them."""
    capture = captures.sample_capture(index, other_style(index))
    for name, people in (("subject", capture.subject), ("style", capture.style)):
        for i, (image, mask) in enumerate(zip(*captures.draw(people), strict=True)):
            _save(image, folder / name / f"{i + 1}.png")
            _save(mask, folder / name / "mask" / f"{i + 1}.png")


def other_style(index: int) -> Style:
    """Another one than the cartoon, in which portraits and subjects are rendering."""
    return STYLES[1 + index % (len(STYLES) - 1)]


def _save(pixels: np.ndarray, path: Path) -> None:  # H W or H W 3 in 0..1
    path.parent.mkdir(parents=True, exist_ok=True)
    as_image(torch.from_numpy(pixels)).save(path)
