"""Names for the attention layers of a model: 'o6-11,m0,i7-8' are a UNet's output blocks 6 to 11,
its middle block and input blocks 7 and 8. Which letters there are is the backbone's matter."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .messages import shown
from .typed import ascii_marks, number_in

_LARGEST_WEIGHT = 10.0
_ITEM = re.compile(r"([a-z])(\d{1,18})(?:-(\d{1,18}))?")


class Block(NamedTuple):
    """A block of a model. kind: the letter of its kind; index: its place among those of its
    kind."""

    kind: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here

    def __str__(self) -> str:
        return f"{self.kind}{self.index}"


class AttentionBlock(NamedTuple):
    """A block in which the picture's tokens look at each other.

    downscale: side of a token in latent pixels; depth: how many transformer blocks it holds.
    """

    block: Block
    downscale: int
    depth: int = 1


@dataclass(frozen=True)
class BlockNames:
    """How users name the blocks of a model.

    kinds: the letters; presets: blocks by the names that stand for them; example: shown in
    messages.
    """

    kinds: str
    presets: Mapping[str, tuple[Block, ...]]
    example: str


def parse_blocks(text: str, blocks: Sequence[Block], names: BlockNames) -> tuple[Block, ...]:
    """Those of `blocks` (all that have attention, in forward order) that `text` names, in that
    order.

    `text` is a preset or a list of blocks and ranges. A range takes in what has attention in it.
    ValueError when something is not understood or names no attention at all.
    """
    lowered = ascii_marks(text).strip().lower()
    if lowered in names.presets:
        return names.presets[lowered]

    named: set[Block] = set()
    for item in filter(None, (part.strip() for part in lowered.split(","))):
        match = _ITEM.fullmatch(item)
        if match is None or match[1] not in names.kinds:
            presets = ", ".join(f"'{preset}'" for preset in names.presets)
            raise ValueError(
                f"layers: '{shown(item)}' is not understood: expected {presets} or blocks such as"
                f" '{names.example}'"
            )
        first, last = int(match[2]), int(match[3] or match[2])
        if first > last:
            raise ValueError(
                f"layers: '{shown(item)}' goes backwards: write the smaller number first, as in"
                f" '{names.example}'"
            )
        part = {b for b in blocks if b.kind == match[1] and first <= b.index <= last}
        if not part:
            raise ValueError(
                f"layers: '{shown(item)}' has no self-attention in this model: it has"
                f" {format_blocks(blocks)}"
            )
        named |= part
    if not named:
        raise ValueError(f"layers: no block given: this model has {format_blocks(blocks)}")
    return tuple(block for block in blocks if block in named)


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Names of blocks as `parse_blocks` reads them, each with a weight: of 'o6-8,m0: 0.5, decoder:
    1' 'o6-8,m0' and 0.5, 'decoder' and 1. ValueError, with what is wrong, for anything else."""
    weights: list[tuple[str, float]] = []
    names: list[str] = []
    for part in filter(None, (part.strip() for part in re.split(r"[,;\n]", ascii_marks(text)))):
        name, colon, written = part.partition(":")
        names.append(name.strip())
        if not colon:
            continue
        try:
            weight = number_in(written)
        except ValueError:
            weight = math.nan
        if not (0 <= weight <= _LARGEST_WEIGHT and all(names)):
            raise ValueError(
                f"layer_weights: '{shown(part)}' is not understood: write layers and a weight from"
                f" 0 to {_LARGEST_WEIGHT:g}, such as 'decoder: 0.5' or 'o6-8: 0, o9-11: 1'"
            )
        weights.append((",".join(names), weight))
        names = []
    if names:
        raise ValueError(
            f"layer_weights: '{shown(names[0])}' has no weight: write one behind a colon, such as"
            f" '{shown(names[0])}: 0.5'"
        )
    return weights


def format_blocks(blocks: Iterable[Block]) -> str:
    """The compact name of some blocks: the inverse of `parse_blocks`."""
    parts: list[str] = []
    start = previous = None
    for block in [*blocks, None]:
        if previous is not None and (
            block is None or block.kind != previous.kind or block.index != previous.index + 1
        ):
            assert start is not None
            parts.append(str(start) if start == previous else f"{start}-{previous.index}")
            start = block
        start = start or block
        previous = block
    return ",".join(parts)
