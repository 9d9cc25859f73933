"""Names for the attention layers of a UNet: 'o6-11,m0,i7-8' are output blocks 6 to 11, the middle
block and input blocks 7 and 8."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_STAGES = {"i": "input", "m": "middle", "o": "output"}
_ITEM = re.compile(r"([imo])(\d+)(?:-(\d+))?")


class Block(NamedTuple):
    """A UNet block as the host names it: stage is 'input', 'middle' or 'output'."""

    stage: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here

    def __str__(self) -> str:
        return f"{self.stage[0]}{self.index}"


class AttentionBlock(NamedTuple):
    """A block with self-attention. downscale: latent size / token grid size (1, 2, 4, 8); depth:
    how many transformer blocks it holds."""

    block: Block
    downscale: int
    depth: int = 1


def parse_blocks(text: str, available: Sequence[AttentionBlock]) -> tuple[Block, ...]:
    """The blocks that `text` names, in forward order.

    `text` is a preset ('fine': the two finest levels of the decoder, the paper's choice; 'decoder';
    'all') or a list of blocks and ranges. A range takes in what has attention in it. ValueError
    when something is not understood or names no attention at all.
    """
    having = [layer.block for layer in available]
    preset = text.strip().lower()
    if preset == "all":
        return tuple(having)
    if preset == "decoder":
        return tuple(block for block in having if block.stage == "output")
    if preset == "fine":
        decoder = [layer for layer in available if layer.block.stage == "output"]
        finest = sorted({layer.downscale for layer in decoder})[:2]
        return tuple(layer.block for layer in decoder if layer.downscale in finest)

    chosen: set[Block] = set()
    for item in filter(None, (part.strip() for part in preset.split(","))):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ValueError(
                f"layers: '{item}' is not understood: expected 'fine', 'decoder', 'all' or blocks"
                " such as 'o6-11,m0,i7-8'"
            )
        letter, first, last = match[1], int(match[2]), int(match[3] or match[2])
        named = {
            block
            for block in having
            if block.stage == _STAGES[letter] and first <= block.index <= last
        }
        if not named:
            raise ValueError(
                f"layers: '{item}' has no self-attention in this model: it has"
                f" {format_blocks(having)}"
            )
        chosen |= named
    if not chosen:
        raise ValueError(f"layers: no block given: this model has {format_blocks(having)}")
    return tuple(block for block in having if block in chosen)


def format_blocks(blocks: Iterable[Block]) -> str:
    """The compact name of some blocks: the inverse of `parse_blocks`."""
    parts: list[str] = []
    start = previous = None
    for block in [*blocks, None]:
        if previous is not None and (
            block is None or block.stage != previous.stage or block.index != previous.index + 1
        ):
            assert start is not None
            parts.append(str(start) if start == previous else f"{start}-{previous.index}")
            start = block
        start = start or block
        previous = block
    return ",".join(parts)
