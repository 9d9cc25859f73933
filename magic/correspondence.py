"""Which places of the references a place of the picture looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference_attention import ReferenceTokens

_QUERIES_AT_ONCE = 256


def cells_at_points(
    points: Sequence[tuple[float, float]], picture: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """The token cells that hold some points: indices S, ascending. points: x, y in pixels; picture,
    grid: rows, columns."""
    cells = {
        min(int(y * grid[0] / picture[0]), grid[0] - 1) * grid[1]
        + min(int(x * grid[1] / picture[1]), grid[1] - 1)
        for x, y in points
    }
    return torch.tensor(sorted(cells))


def cells_in_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """The token cells that a mask (H W in 0..1) covers at least half, or the one that it covers
    most: indices S."""
    coverage = F.interpolate(mask[None, None].float(), size=grid, mode="area").flatten()
    covered = (coverage >= 0.5).nonzero().flatten()
    return covered if len(covered) else coverage.argmax()[None]


def reference_shares(
    q: Tensor, k: Tensor, references: Sequence[ReferenceTokens], heads: int
) -> list[Tensor]:
    """The attention that each reference's tokens get from some queries in one softmax with the
    picture's own tokens (equations 4 to 6).

    q: S C; k: N C. For every reference T: the mean over heads, summed over queries, float32. All of
    them and the own tokens' sum to S.
    """
    parts = [query_shares(some, k, references, heads) for some in torch.split(q, _QUERIES_AT_ONCE)]
    return [
        torch.stack([shares.sum(0) for shares in of_reference]).sum(0)
        for of_reference in zip(*parts, strict=True)
    ]


def query_shares(
    q: Tensor, k: Tensor, references: Sequence[ReferenceTokens], heads: int
) -> list[Tensor]:
    """As `reference_shares`, but for every query by itself: S T for every reference. For few
    queries: all their logits are held at once."""
    keys = torch.cat([k, *(reference.k.to(k) for reference in references)]).float()
    bias = torch.cat(
        [
            k.new_zeros(len(k), dtype=torch.float32),
            *(reference.bias.to(k.device).float() for reference in references),
        ]
    )
    keys = keys.view(len(keys), heads, -1).permute(1, 2, 0)  # heads D M
    queries = q.float().view(len(q), heads, -1).transpose(0, 1) * keys.shape[1] ** -0.5  # heads S D
    total = bias.new_zeros(len(q), len(bias))
    for head in range(heads):
        total += (queries[head] @ keys[head] + bias).softmax(-1)
    return list(
        torch.split(
            total[:, len(k) :] / heads, [len(reference.bias) for reference in references], dim=1
        )
    )


def coarse_size(grid: tuple[int, int], most: int) -> tuple[int, int]:
    """The size of a grid of the same aspect with no side longer than `most`: rows, columns."""
    scale = min(1.0, most / max(grid))
    return max(1, round(grid[0] * scale)), max(1, round(grid[1] * scale))


def cells_at_centres(size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """For each cell of a coarse grid of `size` the token at its centre: indices S into `grid`, row
    by row."""
    rows, columns = (
        ((torch.arange(few) + 0.5) * many / few).long()
        for few, many in zip(size, grid, strict=True)
    )
    return (rows[:, None] * grid[1] + columns).flatten()


def as_picture(
    shares: Tensor, index: Tensor, grid: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Shares of some tokens (T, at the cells `index` of a grid) as a picture of `size` (rows,
    columns)."""
    return F.interpolate(
        _on_grid(shares[None], index, grid), size=size, mode="bilinear", align_corners=False
    )[0, 0]


def as_coarse_maps(
    shares: Tensor, index: Tensor, grid: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Shares of some tokens for each query (S T, at the cells `index` of a grid), averaged over
    cells of a coarser one: S rows columns."""
    return F.interpolate(_on_grid(shares, index, grid), size=size, mode="area")[:, 0]


def _on_grid(shares: Tensor, index: Tensor, grid: tuple[int, int]) -> Tensor:  # S 1 rows columns
    cells = torch.zeros(len(shares), grid[0] * grid[1], device=shares.device)
    cells[:, index.to(shares.device)] = shares
    return cells.view(len(shares), 1, *grid)


def quantised(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (... h w, not negative) as bytes, 255 for the largest value of each, and those values
    (...)."""
    peaks = maps.amax((-2, -1))
    levels = (maps / peaks.clamp(min=1e-12)[..., None, None] * 255).round().to(torch.uint8)
    return levels, peaks
