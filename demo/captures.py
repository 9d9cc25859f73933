"""What MagiCapture learns from in the toy world: one person in several pictures, other people in
one style, and the truth.

The truth is what no photograph has: the same person drawn in the style.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from .portraits import (
    BACKGROUND_COLOURS,
    EXPRESSIONS,
    GARMENT_COLOURS,
    HAIR_COLOURS,
    PATTERNS,
    Garment,
    Portrait,
    Pose,
    Rendering,
    Style,
    render,
    sample_portrait,
)

HAIR_DYES = ("blue", "green", "pink", "purple")
"""Hair that no caption of the training set names: the subject can only be learned from the
pictures."""


@dataclass(frozen=True)
class Capture:
    """subject: portraits of one person; style: portraits of others, all in one style; truth: the
    person in the style."""

    subject: tuple[Portrait, ...]
    style: tuple[Portrait, ...]
    truth: tuple[Portrait, ...]

    @property
    def class_word(self) -> str:
        return self.subject[0].gender


def sample_capture(seed: int, style: Style, count: int = 5) -> Capture:
    """A person and a style from a seed. Pose, expression, clothes and background change from
    picture to picture."""
    rng = random.Random(seed)
    person = replace(
        sample_portrait(rng.randrange(1_000_000), "cartoon"),
        hair=rng.choice((*HAIR_DYES, *HAIR_COLOURS)),
        hat=None,
        scarf=None,
        glasses=None,
    )

    def varied(portrait: Portrait, drawn: Style) -> Portrait:
        return replace(
            portrait,
            style=drawn,
            pose=Pose(
                rng.uniform(-0.06, 0.06),
                rng.uniform(-0.02, 0.05),
                rng.uniform(0.95, 1.15),
                rng.uniform(-6, 6),
            ),
            expression=rng.choice(EXPRESSIONS),
            shirt=Garment(rng.choice(list(GARMENT_COLOURS)), rng.choice(PATTERNS)),
            background=rng.choice(list(BACKGROUND_COLOURS)),
        )

    others: list[Portrait] = []
    while len(others) < count:
        other = sample_portrait(rng.randrange(1_000_000), style)
        if other.gender == person.gender:
            others.append(replace(other, hat=None))
    return Capture(
        tuple(varied(person, "cartoon") for _ in range(count)),
        tuple(others),
        tuple(varied(person, style) for _ in range(count)),
    )


def head_mask(drawn: Rendering) -> np.ndarray:
    """Face, hair and what is worn on the nose: H W in 0..1. The hair of a drawn person is as much
    who it is as the face."""
    total: np.ndarray = drawn.masks["face"] + drawn.masks["hair"] + drawn.masks["glasses"]
    return total.clip(0, 1)


def draw(portraits: tuple[Portrait, ...], size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Pictures N H W 3 and head masks N H W, float32 in 0..1."""
    drawn = [render(portrait, size) for portrait in portraits]
    return np.stack([picture.image for picture in drawn]), np.stack(
        [head_mask(picture) for picture in drawn]
    )
