"""Whether parts of a toy's picture have the colours that a caption asks for.

A part is compared with itself as it would be drawn in every colour that it could have: with its
lines, hat bands, patterns and glow. Counted by the nearest colour alone, one in five of the hats of
pictures as they were drawn has another colour than its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .dataset import SCENE_PARTS
from .portraits import (
    BACKGROUND_COLOURS,
    GARMENT_COLOURS,
    PARTS,
    Portrait,
    Scene,
    render,
    render_scene,
    second_colour,
    tint,
)

_GARMENTS: tuple[Literal["hat", "shirt"], ...] = ("hat", "shirt")


@dataclass(frozen=True)
class AskedColour:
    """A colour that a caption asks for.

    part: index in SCENE_PARTS; name: of the colour; bins: K 3, the colours that pixels are counted
    by; looks: for every colour that the part could have, the histogram (K) of the part drawn in it.
    """

    part: int
    name: str
    bins: Tensor
    looks: dict[str, Tensor]


def draw(picture: Portrait | Scene, side: int) -> tuple[Tensor, Tensor]:
    """H W 3 in 0..1, and 13 H W: how much of each pixel is of each of SCENE_PARTS."""
    masks = torch.zeros(len(SCENE_PARTS), side, side)
    if isinstance(picture, Scene):
        scene = render_scene(picture, side)
        for i, key in enumerate(SCENE_PARTS):
            masks[i] = torch.from_numpy(scene.masks[key])
        return torch.from_numpy(scene.image), masks
    portrait = render(picture, side)
    for i, part in enumerate(PARTS):
        masks[i] = torch.from_numpy(portrait.masks[part])
    return torch.from_numpy(portrait.image), masks


def asked_colours(picture: Portrait | Scene, side: int) -> tuple[AskedColour, ...]:
    """Of each person's hat and shirt, and of the background. Everybody has a hat. side: in pixels,
    at which the looks are drawn."""
    people = (picture.left, picture.right) if isinstance(picture, Scene) else (picture,)
    style = people[0].style
    cloth = [tint(value, style) for value in GARMENT_COLOURS.values()]
    cloth += [tint(second_colour(name), style) for name in ("white", "black")]
    ground = [tint(value, style, background=True) for value in BACKGROUND_COLOURS.values()]
    asked = [
        AskedColour(
            SCENE_PARTS.index((index, part)), getattr(person, part).colour, _as_bins(cloth), {}
        )
        for index, person in enumerate(people)
        for part in _GARMENTS
    ]
    asked.append(AskedColour(0, people[0].background, _as_bins(ground), {}))
    # One drawing shows one colour of everything that is asked for.
    for cloth_name, ground_name in itertools.zip_longest(GARMENT_COLOURS, BACKGROUND_COLOURS):
        image, masks = draw(_recolour(picture, cloth_name, ground_name), side)
        for each in asked:
            if name := cloth_name if each.part else ground_name:
                where = masks.argmax(0) == each.part
                each.looks[name] = _histogram(image[where], each.bins)
    return tuple(asked)


def right_colours(image: Tensor, owners: Tensor, asked: Sequence[AskedColour]) -> list[bool]:
    """Whether each part looks more like itself in the asked colour than like itself in any other.
    image: H W 3 in 0..1; owners: H W, the part that owns each pixel. A part that owns nothing is
    wrong."""
    right: list[bool] = []
    for each in asked:
        pixels = image[owners == each.part]
        histogram = _histogram(pixels, each.bins)
        apart = {name: float((histogram - look).abs().sum()) for name, look in each.looks.items()}
        right.append(len(pixels) > 0 and min(apart, key=apart.__getitem__) == each.name)
    return right


def _recolour(picture: Portrait | Scene, cloth: str, ground: str | None) -> Portrait | Scene:
    if isinstance(picture, Scene):
        left, right = (
            _recolour_person(person, cloth, ground) for person in (picture.left, picture.right)
        )
        return replace(picture, left=left, right=right)
    return _recolour_person(picture, cloth, ground)


def _recolour_person(person: Portrait, cloth: str, ground: str | None) -> Portrait:
    return replace(
        person,
        hat=replace(person.hat, colour=cloth) if person.hat else None,
        shirt=replace(person.shirt, colour=cloth),
        background=ground or person.background,
    )


def _as_bins(colours: Sequence[tuple[int, int, int]]) -> Tensor:
    return torch.tensor(colours) / 255


def _histogram(pixels: Tensor, bins: Tensor) -> Tensor:
    """Share of pixels that are nearest to each bin. M 3, K 3 -> K."""
    counts = torch.cdist(pixels, bins).argmin(1).bincount(minlength=len(bins))
    return counts / max(1, len(pixels))
