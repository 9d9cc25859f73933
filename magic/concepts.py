"""What a user wants to see in the picture, and where it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .curves import Curve
from .phrases import named_words
from .pictures import check_aspect, check_painted, check_size, check_target_region
from .region_texts import PhraseText

MINIMUM_COVERAGE = 0.1
"""A token whose cell the mask covers less than this takes no part: it shows mostly something
else."""
_LONGEST = 32
"""Times that one side of a reference may be the other: it is enlarged until the shorter one has
tokens enough."""


Level = Literal["subtle", "normal", "strong"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""How much is copied, in words."""


LoraText = Literal["phrase", "all", "none"]
LORA_TEXTS: tuple[LoraText, ...] = get_args(LoraText)
"""Which tokens of a prompt take a LoRA: the phrase's, all of positive and negative prompt, none."""


@dataclass(frozen=True, eq=False)
class ConceptLora:
    """A LoRA that acts where its concept is.

    name: for messages; weights: its tensors by the names in its file; strength: what its part is
    multiplied with; text: which of the prompt's tokens take it; is_global: whether layers without a
    place (of the time, of the pooled text) take it, for all of the picture; is_inside_target:
    whether a painted region only limits where the layout has the concept, instead of replacing it;
    start, end: shares of sampling between which it acts; curve: its strength over sampling, in
    place of `strength`, or None.
    """

    name: str
    weights: Mapping[str, Tensor]
    strength: float
    text: LoraText = "phrase"
    is_global: bool = False
    is_inside_target: bool = False
    start: float = 0.0
    end: float = 1.0
    curve: Curve | None = None


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept of a MagicFace picture.

    phrase: the words of the target prompt that name it; images: B H W 3 in 0..1, one or several
    references of the same thing, or None where LoRAs or a text alone know it; mask: B H W or 1 H W
    in 0..1, None for the whole image; prompt: what the references show, empty for the phrase;
    strength: added to the logits of the reference's tokens (natural log: 3 multiplies the odds by
    20); target_region: 1 H W in 0..1, where the concept goes, or B H W for a batch of B pictures,
    None for automatic; level: a strength in words, which the kind of model turns into a number and
    which counts in place of `strength`; loras: that act where it is; text: of its own, which is
    read there; start, end: shares of sampling between which its references are looked at; curve:
    their strength over sampling, in place of `strength` and `level`, or None; layer_weights: of the
    reference's tokens in some layers, as `magic.blocks.parse_weights` reads it; is_away: whether
    the picture is led away from the references; away: concepts of which that holds, which are where
    this one is (`with_loras_joined`).
    """

    phrase: str
    images: Tensor | None
    mask: Tensor | None
    prompt: str
    strength: float
    target_region: Tensor | None = None
    level: Level | None = None
    loras: tuple[ConceptLora, ...] = ()
    text: PhraseText | None = None
    start: float = 0.0
    end: float = 1.0
    curve: Curve | None = None
    layer_weights: str = ""
    is_away: bool = False
    away: tuple[Concept, ...] = ()

    def __post_init__(self) -> None:
        if not self.phrase.strip():
            raise ValueError(
                "a concept needs a phrase: the words of the target prompt that name it, such as"
                " 'hat'"
            )
        if self.images is None:
            if not self.loras and self.text is None and not self.away:
                raise ValueError(f"concept '{self.phrase}' has neither an image nor a LoRA")
        else:
            self._check_images(self.images)
        if self.target_region is not None:
            check_target_region(self.target_region, f"concept '{self.phrase}'")

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or 0 in images.shape:
            raise ValueError(
                f"concept '{self.phrase}' has no image: expected B H W C, got {list(images.shape)}"
            )
        height, width = images.shape[1:3]
        check_size((height, width), f"image of concept '{self.phrase}'")
        if max(height, width) > _LONGEST * min(height, width):
            raise ValueError(
                f"image of concept '{self.phrase}' is {width}x{height}: expected sides that differ"
                f" by no more than {_LONGEST} times. Crop it"
            )
        if self.mask is not None:
            self._check_mask(self.mask, images)

    def _check_mask(self, mask: Tensor, images: Tensor) -> None:
        check_painted(
            mask,
            MINIMUM_COVERAGE,
            f"mask of concept '{self.phrase}'",
            "paint over the part of the image to take",
        )
        if mask.shape[0] not in (1, images.shape[0]):
            raise ValueError(
                f"concept '{self.phrase}' has {images.shape[0]} images but {mask.shape[0]}"
                " masks: give one for each, or one for all"
            )
        picture, (rows, columns) = images.shape[1:3], mask.shape[-2:]
        check_aspect((picture[0], picture[1]), (rows, columns), f"concept '{self.phrase}'")

    @property
    def views(self) -> Iterator[Tensor]:
        """Its references, H W 3 each."""
        return iter(() if self.images is None else self.images[..., :3])


def with_loras_joined(
    concepts: Sequence[Concept], once: Collection[str] = ()
) -> tuple[Concept, ...]:
    """Each phrase once with its references, its LoRAs, its text, and what it is led away from.

    A concept of LoRAs, a text or references to lead away from alone goes to the one of the same
    phrase before it, else behind it; without one it stands for itself. Concepts with references
    stay apart, however often a phrase is named. once: words that the prompt has once, so that
    'man' and 'man#1' are the same phrase.
    """
    joined: list[Concept] = []
    for link in concepts:
        concept = _as_holder(link) if link.is_away else link
        other = _partner(joined, concept, once)
        if other is None:
            joined.append(concept)
        else:
            joined[other] = _joined(joined[other], concept)
    return tuple(joined)


def _as_holder(away: Concept) -> Concept:
    """A concept without references of its own, which is led away from some."""
    return Concept(
        away.phrase, None, None, "", 0.0, away.target_region, loras=away.loras, away=(away,)
    )


def _partner(joined: Sequence[Concept], concept: Concept, once: Collection[str]) -> int | None:
    """The last one of the same phrase of which one of both has no references."""

    def named(phrase: str) -> tuple[str, int | None]:
        words, number = named_words(phrase)
        return words, None if number == 1 and words in once else number

    same = [
        i
        for i, other in enumerate(joined)
        if named(other.phrase) == named(concept.phrase)
        and (other.images is None or concept.images is None)
    ]
    return same[-1] if same else None


def _joined(first: Concept, second: Concept) -> Concept:
    if first.text is not None and second.text is not None:
        raise ValueError(
            f"phrase '{first.phrase}' has two texts of its own: write them as one, or name two"
            " occurrences of the words, such as 'man' and 'man#2'"
        )
    base, more = (first, second) if second.images is None else (second, first)
    region = base.target_region if base.target_region is not None else more.target_region
    return dataclasses.replace(
        base,
        loras=(*first.loras, *second.loras),
        away=(*first.away, *second.away),
        target_region=region,
        text=first.text if first.text is not None else second.text,
    )


Cells = Literal["share", "nearest"]
"""How a mask is laid on tokens: each counts by the share that the mask covers, or all or nothing,
by the mask's pixel at its corner, as in the official code."""
CELLS: tuple[Cells, ...] = ("share", "nearest")


def visible_tokens(
    mask: Tensor | None, grid: tuple[int, int], cells: Cells = "share"
) -> tuple[Tensor, Tensor]:
    """The tokens of a reference that take part, and the log of how far the mask covers each.

    mask: H W in 0..1 at any size, or None for all; grid: rows, columns of the token grid; cells:
    how the mask is laid on it. Returns indices (T) and log coverage (T).
    """
    if mask is None:
        count = grid[0] * grid[1]
        return torch.arange(count), torch.zeros(count)
    if cells == "nearest":
        pixels = torch.nn.functional.interpolate(mask[None, None].float(), size=grid)
        index = (pixels.flatten() >= 0.5).nonzero().flatten()
        return index, torch.zeros(len(index))
    coverage = (
        torch.nn.functional.interpolate(mask[None, None].float(), size=grid, mode="area")
        .flatten()
        .clamp(max=1)
    )
    index = (coverage >= MINIMUM_COVERAGE).nonzero().flatten()
    return index, coverage[index].log()
