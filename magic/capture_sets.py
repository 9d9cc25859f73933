"""What MagiCapture learns from: a handful of pictures with face masks, the placeholder that stands
for them, and the prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

PERSON, STYLE = "{person}", "{style}"
_PLACEHOLDER = re.compile(r"[^\s(),:{}\\]+")


@dataclass(frozen=True, eq=False)
class CapturePicture:
    """image: H W 3 in 0..1; mask: H W in 0..1, the face. name: how messages call it."""

    name: str
    image: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Subject:
    """A person. templates hold {person}, which becomes '<placeholder> <class word>', such as 'sks
    woman'."""

    pictures: tuple[CapturePicture, ...]
    placeholder: str
    class_word: str
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        check_placeholder(self.placeholder)
        check_templates(self.templates, (PERSON,))

    def prompt(self, template: int) -> str:
        return self.templates[template].replace(PERSON, self.person)

    @property
    def person(self) -> str:
        return f"{self.placeholder} {self.class_word}"


@dataclass(frozen=True, eq=False)
class StyleSet:
    """A style, shown on other people. templates hold {person} and {style}: the class word in the
    style's own prompts, the subject in composed ones."""

    pictures: tuple[CapturePicture, ...]
    placeholder: str
    class_word: str
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        check_placeholder(self.placeholder)
        check_templates(self.templates, (PERSON, STYLE))

    def prompt(self, template: int, person: str | None = None) -> str:
        return (
            self.templates[template]
            .replace(PERSON, person or self.class_word)
            .replace(STYLE, self.placeholder)
        )


def check_placeholder(placeholder: str) -> None:
    """ValueError unless it is one word without the signs that prompts use."""
    if not _PLACEHOLDER.fullmatch(placeholder):
        raise ValueError(
            f"placeholder '{placeholder}' must be one word without spaces, commas, colons and"
            " brackets, such as '<anna>'"
        )


def check_templates(templates: Sequence[str], slots: Sequence[str]) -> None:
    """ValueError unless there is a template and each has every slot exactly once."""
    if not templates:
        raise ValueError(
            f"no prompt template: write one a line, each with {' and '.join(slots)} in it"
        )
    for template in templates:
        for slot in slots:
            if template.count(slot) != 1:
                raise ValueError(f"template '{template}' must have {slot} in it exactly once")


def capture_pictures(
    images: Sequence[Tensor], masks: Sequence[Tensor] | None, names: Sequence[str]
) -> tuple[CapturePicture, ...]:
    """Pictures of any size from H W C (1, 3 or 4 channels) and face masks H W of any size but the
    same aspect.

    Without masks the whole picture counts as face. One mask serves all pictures. ValueError names
    the picture.
    """
    if not images:
        raise ValueError("no pictures: connect images, or choose a folder")
    if masks and len(masks) not in (1, len(images)):
        raise ValueError(
            f"{len(images)} pictures but {len(masks)} masks: give one for each, or one for all"
        )
    found = []
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        rgb = as_rgb(image, name)
        mask = (
            rgb.new_ones(rgb.shape[:2])
            if not masks
            else _fitted(masks[i if len(masks) > 1 else 0], rgb, name)
        )
        if float(mask.max()) < 0.5:
            raise ValueError(
                f"face mask of {name} is empty: paint over the face, or leave the picture out"
            )
        found.append(CapturePicture(name, rgb, mask))
    return tuple(found)


def as_rgb(image: Tensor, name: str) -> Tensor:
    """H W C with 1 (gray), 3 or 4 (alpha, put on white) channels -> H W 3 in 0..1."""
    channels = image.shape[-1]
    if image.ndim != 3 or channels not in (1, 3, 4):
        raise ValueError(
            f"{name} is no picture: expected height, width and 1, 3 or 4 channels, got"
            f" {list(image.shape)}"
        )
    if channels == 4:
        image = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    return image.float().clamp(0, 1).expand(-1, -1, 3)


def _fitted(mask: Tensor, image: Tensor, name: str) -> Tensor:
    (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
    if abs(width * mask_height - height * mask_width) > 8 * max(
        width, height, mask_width, mask_height
    ):
        raise ValueError(
            f"mask and picture differ in aspect at {name}: {width}x{height} and"
            f" {mask_width}x{mask_height}"
        )
    if (height, width) == (mask_height, mask_width):
        return mask.float()
    return F.interpolate(
        mask[None, None].float(), size=(height, width), mode="bilinear", antialias=True
    )[0, 0]
