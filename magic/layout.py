"""The semantic layout: which word of the prompt owns which part of the picture, read from the
attention of the sampling step.

MagicFace (arXiv 2408.07433), section 3.3; constants as in the official code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FOREGROUND_CA_SCALE = 0.9
"""Below this weight of the other words, regions are cut to the foreground."""
_ONE_PHRASE, _SEVERAL_PHRASES = 0.9, 0.6
_CLEARLY_MORE = 1.4
"""Attention relative to its mean over the picture."""


@dataclass(frozen=True)
class SemanticLayout:
    """regions: B H W, position of the prompt token that owns each place, -1 for none. foreground: B
    H W, bool. phrase_maps: B P H W, each phrase's map divided by its mean (1 = average), for soft
    masks."""

    regions: Tensor
    foreground: Tensor
    phrase_maps: Tensor

    def concepts(self, spans: Sequence[Sequence[int]]) -> Tensor:
        """The index of the phrase that owns each place, -1 for none: B H W. A token of two phrases
        counts for the longer one."""
        out = torch.full_like(self.regions, -1)
        for i, span in sorted(enumerate(spans), key=lambda item: len(item[1])):
            out[torch.isin(self.regions, torch.tensor(span, device=out.device))] = i
        return out

    def renamed(self, positions: Sequence[int]) -> SemanticLayout:
        """The same in the positions of a longer prompt: token i of this one is positions[i]
        there."""
        names = torch.tensor([*positions, -1], device=self.regions.device)
        return dataclasses.replace(self, regions=names[self.regions])


def joined(
    parts: Sequence[tuple[SemanticLayout, Sequence[int]]], size: Sequence[int]
) -> SemanticLayout:
    """Layouts of parts of a picture as one of all of it, with nothing in between; of parts that
    overlap the last one counts.

    parts: each with the height, width, top and left of its area, in latent pixels of a picture of
    `size`.
    """
    first = parts[0][0]
    whole = SemanticLayout(
        torch.full_like(first.regions, -1),
        torch.zeros_like(first.foreground),
        torch.zeros_like(first.phrase_maps),
    )
    for layout, area in parts:
        rows, columns = area_cells(area, first.regions.shape[1:], size)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        whole.regions[:, rows, columns] = F.interpolate(
            layout.regions[:, None].float(), size=shape, mode="nearest-exact"
        )[:, 0].long()
        foreground = F.interpolate(
            layout.foreground[:, None].float(), size=shape, mode="nearest-exact"
        )[:, 0]
        whole.foreground[:, rows, columns] = foreground > 0.5
        if layout.phrase_maps.shape[1]:
            whole.phrase_maps[..., rows, columns] = F.interpolate(
                layout.phrase_maps, size=shape, mode="bilinear", align_corners=False
            )
    return whole


def area_cells(
    area: Sequence[int], grid: Sequence[int], size: Sequence[int]
) -> tuple[slice, slice]:
    """The rows and columns of a grid that an area covers, one of each at least.

    area: height, width, top and left in a picture of `size`, beyond which it may reach; grid: rows
    and columns over all of that picture.
    """

    def stretch(start: int, length: int, cells: int, side: int) -> slice:
        first = min(round(start * cells / side), cells - 1)
        return slice(first, min(cells, max(first + 1, round((start + length) * cells / side))))

    return stretch(area[2], area[0], grid[0], size[0]), stretch(area[3], area[1], grid[1], size[1])


def head_mean_attention(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Attention probabilities averaged over heads, float32. q: B N C, k: B M C -> B N M."""
    q, k = (x.reshape(*x.shape[:-1], heads, -1).float() for x in (q, k))
    scale: float = q.shape[-1] ** -0.5
    # Head by head: at 64x64 tokens all heads at once would take half a gigabyte an image.
    total = ((q[:, :, 0] * scale) @ k[:, :, 0].transpose(1, 2)).softmax(-1)
    for head in range(1, heads):
        total += ((q[:, :, head] * scale) @ k[:, :, head].transpose(1, 2)).softmax(-1)
    return total / heads


def column_attention(q: Tensor, k: Tensor, heads: int, chunk: int = 1024) -> Tensor:
    """Attention probabilities to some of the keys, renormalised over these, mean over heads.

    q: B N C, of the picture's tokens; k: B M C, only the text's keys (which word a place looks at)
    or only the picture's (which other place): where both share one attention, a softmax over some
    columns alone is the joint softmax of each head divided by its sum over these columns. -> B N M,
    float32, rows of sum 1. Never more than `chunk` queries of one head at once beside the result.
    """
    q, k = (x.unflatten(-1, (heads, -1)) for x in (q, k))  # B N H D
    scale: float = q.shape[-1] ** -0.5
    out = q.new_zeros(q.shape[0], q.shape[1], k.shape[1], dtype=torch.float32)
    for head in range(heads):
        keys = k[:, :, head].float().transpose(1, 2) * scale
        for part, rows in zip(out.split(chunk, 1), q[:, :, head].split(chunk, 1), strict=True):
            part += (rows.float() @ keys).softmax(-1)
    return out.div_(heads)


def propagate(self_attention: Tensor, cross_attention: Tensor) -> Tensor:
    """A'C with A' = (A + 3 A^2) / 4, without ever forming A^2. A: B N N, C: B N T -> B N T."""
    once = self_attention @ cross_attention
    return (once + 3 * (self_attention @ once)) / 4


def smooth(x: Tensor) -> Tensor:
    """3x3 smoothing with weights exp(-(dx^2 + dy^2)), reflected at the border. x: B C H W."""
    line = torch.tensor([1.0, 0.0, 1.0], device=x.device, dtype=x.dtype).neg().exp()
    kernel = torch.outer(line, line)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 3, 3)
    # One row or column has nothing to reflect.
    mode = "reflect" if min(x.shape[-2:]) > 1 else "replicate"
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), kernel, groups=x.shape[1])


def _relative(x: Tensor) -> Tensor:
    return x / (x.mean((-2, -1), keepdim=True) + 1e-8)


def token_maps(propagated: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A layer's maps as pictures of the layout's size: bilinear, smoothed, each divided by its
    mean. B N T -> B T H W."""
    return _relative(_resized(propagated, grid, size))


def foreground_columns(attention: Tensor, starts: Sequence[int]) -> Tensor:
    """The start tokens' share and that of all others, B N T -> B N 2. Linear, so it may be taken
    before or after `propagate`."""
    start = attention[..., list(starts)].sum(-1)
    return torch.stack([start, attention.sum(-1) - start], dim=-1)


def _resized(propagated: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    maps = propagated.transpose(1, 2).reshape(propagated.shape[0], -1, *grid)
    return smooth(F.interpolate(maps, size=size, mode="bilinear", align_corners=False))


def is_described(columns: Tensor) -> Tensor:
    """Which places the prompt describes. columns: B 2 H W, `token_maps` of `foreground_columns`,
    mean over layers, of the unconditional rows -> B H W, bool.

    The start token looks at what no word describes.
    """
    return columns[:, 0] <= columns[:, 1]


def is_described_by_phrases(maps: Tensor, spans: Sequence[Sequence[int]]) -> Tensor:
    """The same without unconditional rows: where a phrase gets clearly more attention than on
    average. maps: B T H W (`token_maps`, mean over layers) -> B H W, bool.

    The prompt's own start token will not do: with a background among its words it marks the
    foreground. Of the thresholds 1 to 2 on the toy checkpoint 1.4 comes nearest to what
    unconditional rows give (IoU of the phrases' regions .86 on average).
    """
    if not spans:
        return torch.ones_like(maps[:, 0], dtype=torch.bool)
    phrases = torch.stack([maps[:, list(span)].sum(1) for span in spans], dim=1)
    return _relative(phrases).amax(1) > _CLEARLY_MORE


def semantic_layout(
    maps: Tensor, foreground: Tensor, spans: Sequence[Sequence[int]], ca_scale: float
) -> SemanticLayout:
    """The layout of a step from its averaged maps.

    maps: B T H W (`token_maps`, mean over layers); foreground: B H W, bool; spans: the token
    positions of each phrase; ca_scale: what tokens that name no phrase are multiplied with (.5 to
    1; less gives the phrases more room).
    """
    scale = torch.full((maps.shape[1],), ca_scale, device=maps.device, dtype=maps.dtype)
    for span in spans:
        scale[list(span)] = 1.0
    regions = (maps * scale[:, None, None]).argmax(1)
    if ca_scale < FOREGROUND_CA_SCALE:
        regions = torch.where(foreground, regions, -1)
    phrase_maps = (
        torch.stack([maps[:, list(span)].amax(1) for span in spans], dim=1)
        if spans
        else maps[:, :0]
    )
    return SemanticLayout(regions, foreground, phrase_maps)


def automatic_ca_scale(phrases: int) -> float:
    """What tokens that name no phrase are multiplied with where nobody has said it, for so many
    phrases."""
    return _ONE_PHRASE if phrases == 1 else _SEVERAL_PHRASES


def layout_downscales(available: Sequence[int], latent_tokens: int) -> tuple[int, ...]:
    """Which attention levels (latent size / 1, 2, 4, 8) the layout is read from: three of them,
    from /2 on as in the official code.

    On a latent so small that /2 has fewer than 16x16 tokens full size is taken in too, and what has
    fewer than 8x8 is left out (such maps cannot tell a scarf from a shirt); on one so large that a
    level has more than 64x64 tokens that level is left out (its map alone would take a gigabyte).
    """
    finest = 2 if latent_tokens >= 4 * 16 * 16 else 1
    usable = sorted(
        level for level in set(available) if level >= finest and latent_tokens <= level**2 * 64 * 64
    )
    if finest == 1:
        usable = [level for level in usable if latent_tokens >= level**2 * 8 * 8]
    return tuple((usable or [max(available)])[:3])
