"""Which places of the references a place of the picture looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference_attention import ReferenceTokens

_QUERIES_AT_ONCE = 256


def cells_at_points(points: Sequence[tuple[float, float]], picture: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The token cells that hold some points: indices S, ascending. points: x, y in pixels; picture, grid: rows, columns."""
    cells = {min(int(y * grid[0] / picture[0]), grid[0] - 1) * grid[1] + min(int(x * grid[1] / picture[1]), grid[1] - 1) for x, y in points}
    return torch.tensor(sorted(cells))


def cells_in_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """The token cells that a mask (H W in 0..1) covers at least half, or the one that it covers most: indices S."""
    coverage = F.interpolate(mask[None, None].float(), size=grid, mode="area").flatten()
    covered = (coverage >= 0.5).nonzero().flatten()
    return covered if len(covered) else coverage.argmax()[None]


def reference_shares(q: Tensor, k: Tensor, references: Sequence[ReferenceTokens], heads: int) -> list[Tensor]:
    """The attention that each reference's tokens get from some queries in one softmax with the picture's own tokens (equations 4 to 6).

    q: S C; k: N C. For every reference T: the mean over heads, summed over queries, float32. All of them and the own tokens' sum to S.
    """
    keys = torch.cat([k, *(reference.k.to(k) for reference in references)]).float()
    bias = torch.cat([k.new_zeros(len(k), dtype=torch.float32), *(reference.bias.to(k.device).float() for reference in references)])
    keys = keys.view(len(keys), heads, -1).permute(1, 2, 0)  # heads D M
    total = torch.zeros_like(bias)
    for start in range(0, len(q), _QUERIES_AT_ONCE):
        some = q[start : start + _QUERIES_AT_ONCE].float()
        queries = some.view(len(some), heads, -1).transpose(0, 1) * keys.shape[1] ** -0.5  # heads S D
        for head in range(heads):
            total += (queries[head] @ keys[head] + bias).softmax(-1).sum(0)
    return list(torch.split(total[len(k) :] / heads, [len(reference.bias) for reference in references]))


def as_picture(shares: Tensor, index: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Shares of some tokens (T, at the cells `index` of a grid) as a picture of `size` (rows, columns)."""
    cells = torch.zeros(grid[0] * grid[1], device=shares.device)
    cells[index.to(shares.device)] = shares
    return F.interpolate(cells.view(1, 1, *grid), size=size, mode="bilinear", align_corners=False)[0, 0]
