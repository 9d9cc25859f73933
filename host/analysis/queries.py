"""Which concepts some tokens of the picture look at in a layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..sampling.observers import ReferenceView


def queries_by_concepts(
    view: ReferenceView, cells: Tensor
) -> Iterator[tuple[int, tuple[int, ...], Tensor]]:
    """For each picture of the batch: (picture, the concepts that some tokens may look at, which
    ones of `cells`). cells: indices S of tokens. What looks at no reference is left out."""
    looked_at = tuple(i for i, tokens in enumerate(view.bank) if not tokens.is_empty)
    if view.regions is None:
        everywhere = torch.arange(len(cells), device=cells.device)
        yield from ((image, looked_at, everywhere) for image in range(view.q.shape[0]))
        return
    for region in view.regions:
        if region.concept in looked_at:
            inside = torch.isin(cells, region.index.to(cells.device)).nonzero().flatten()
            if len(inside):
                yield region.image, (region.concept,), inside
