"""Where each concept is in a picture, softly: what a LoRA of the concept is multiplied with."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch.nn.functional as F
from torch import Tensor


def concept_shares(
    owners: Tensor | None,
    targets: Sequence[Tensor | None],
    inside: Collection[int],
    batch: int,
) -> list[Tensor | None]:
    """For each concept how much of each place is its own: B H W in 0..1, each of a size of its own;
    None where nothing is known yet.

    owners: B H W as the layout has it, the index of the concept at each place or -1, None before
    there is a layout; targets: for each concept the region that the user painted (1 H W or B H W in
    0..1) or None; inside: concepts whose painted region only limits what the layout has, where
    others' replaces it.
    """
    shares: list[Tensor | None] = []
    for concept, target in enumerate(targets):
        if target is not None and concept not in inside:
            shares.append(target.float().clamp(0, 1).expand(batch, -1, -1))
            continue
        if owners is None:
            shares.append(None)
            continue
        own = (owners == concept).float()
        if target is not None:
            own = own * share_at(target.float().clamp(0, 1), own.shape[1:]).to(own)
        else:
            for other, painted in enumerate(targets):
                if painted is not None and other not in inside:
                    # What another concept was painted over belongs to that one.
                    painted_share = share_at(painted.float().clamp(0, 1), own.shape[1:]) > 0.5
                    own = own * ~painted_share.to(own.device)
        shares.append(own)
    return shares


def share_at(share: Tensor, grid: Sequence[int]) -> Tensor:
    """A region on a grid of rows, columns: B H W -> B rows columns. Cells of a coarser grid count
    by what is covered of each, those of a finer one have soft edges."""
    rows, columns = grid
    if tuple(share.shape[1:]) == (rows, columns):
        return share
    if rows <= share.shape[1] and columns <= share.shape[2]:
        return F.interpolate(share[:, None], size=(rows, columns), mode="area")[:, 0]
    enlarged = F.interpolate(
        share[:, None], size=(rows, columns), mode="bilinear", align_corners=False
    )
    return enlarged[:, 0]
