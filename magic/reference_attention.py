"""MagicFace's two attention rules (arXiv 2408.07433, section 3): RSA lays the picture out, RBA
fills in the details region by region.

Both take `attend(q, k, v, bias)`, plain multi-head attention with q: B N C, k, v: B M C and bias: M
or None, added to the logits of every query and head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class ReferenceTokens:
    """The visible tokens of one concept's references in one layer. k, v: T C; k may be B T C, where
    they lie elsewhere for each picture; bias: T, strength + log of the mask's coverage. A concept
    without references has none."""

    k: Tensor
    v: Tensor
    bias: Tensor

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look at."""
        return not len(self.bias)

    def of(self, image: int) -> ReferenceTokens:
        """As one picture of the batch meets them: k T C."""
        return self if self.k.ndim == 2 else dataclasses.replace(self, k=self.k[image])


@dataclass(frozen=True)
class RegionTokens:
    """The tokens of one image of the batch that share a rule. `concept`: index of the concept, None
    for plain attention; `index`: R."""

    image: int
    concept: int | None
    index: Tensor


def _attend_with(
    q: Tensor, k: Tensor, v: Tensor, references: Sequence[ReferenceTokens], attend: Attend
) -> Tensor:
    batch, own = k.shape[:2]
    bias = torch.cat([k.new_zeros(own), *(reference.bias.to(k) for reference in references)])
    keys = torch.cat(
        [k, *(reference.k.to(k).expand(batch, -1, -1) for reference in references)], dim=1
    )
    values = torch.cat(
        [v, *(reference.v.to(v).expand(batch, -1, -1) for reference in references)], dim=1
    )
    return attend(q, keys, values, bias)


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, references: Sequence[ReferenceTokens], attend: Attend
) -> Tensor:
    """Reference-aware self-attention (RSA): every query attends to its own image and to all
    references in one softmax.

    q, k, v: B N C -> B N C. Equation 4 of the paper, with the weighted mask as an additive bias as
    in the official code.
    """
    if not references:
        return attend(q, k, v, None)
    return _attend_with(q, k, v, references, attend)


def region_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    references: Sequence[ReferenceTokens],
    regions: Sequence[RegionTokens],
    attend: Attend,
) -> Tensor:
    """Region-grouped blend attention (RBA): the queries of a concept's region attend to their own
    image and to that concept only.

    q, k, v: B N C -> B N C. `regions` must name every token of every image exactly once
    (`group_tokens` does). Equations 5 and 6 of the paper; the queries are gathered, so each is
    computed once, whatever the number of concepts. Without references a concept's region has plain
    attention.
    """
    out = torch.empty_like(q)
    for region in regions:
        one = slice(region.image, region.image + 1)
        queries = q[one, region.index]
        if region.concept is None or references[region.concept].is_empty:
            out[one, region.index] = attend(queries, k[one], v[one], None)
        else:
            own = [references[region.concept].of(region.image)]
            out[one, region.index] = _attend_with(queries, k[one], v[one], own, attend)
    return out


def led_away(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    references: Sequence[ReferenceTokens],
    away: Sequence[Sequence[ReferenceTokens]],
    regions: Sequence[RegionTokens],
    attend: Attend,
    is_by_region: bool,
) -> Tensor:
    """`out` moved away from references by what these would bring, in the regions of their concepts:

        out + (out - beside_away)

    out, q: B N C, k, v: B M C -> B N C. out: by one of the two rules above, with `references`,
    is_by_region for RBA; beside_away: by the same rule, with those of `away` beside them; away: for
    each concept those that its region is led away from. With the share m of the attention that they
    get it is `out - m (mean - out)`, of the mean of their values: no further from `out` than what
    the reference itself would bring. Other places stay as they are.
    """
    out = out.clone()
    for region in regions:
        own = () if region.concept is None else away[region.concept]
        if region.concept is None or all(tokens.is_empty for tokens in own):
            continue
        one = slice(region.image, region.image + 1)
        drawn = [references[region.concept]] if is_by_region else references
        beside = [tokens.of(region.image) for tokens in (*drawn, *own) if not tokens.is_empty]
        beside_away = _attend_with(q[one, region.index], k[one], v[one], beside, attend)
        out[one, region.index] = 2 * out[one, region.index] - beside_away
    return out


def place_concepts(
    layout: Tensor | None, targets: Sequence[Tensor | None], batch: int, grid: tuple[int, int]
) -> Tensor:
    """The concept that owns each token, B rows columns, -1 for none.

    layout: B H W as measured (-1: none), or None where nothing was measured yet. targets: for each
    concept the region that the user painted (1 H W in 0..1), which replaces the measured one, or
    None.
    """
    device = layout.device if layout is not None else None
    owned = torch.full((batch, *grid), -1, device=device)
    if layout is not None:
        owned = F.interpolate(layout[:, None].float(), size=grid, mode="nearest")[:, 0].long()
    for concept, target in enumerate(targets):
        if target is not None:
            owned[owned == concept] = -1
    for concept, target in enumerate(targets):
        if target is not None:
            shares = F.interpolate(target[:, None].float(), size=grid, mode="area")[:, 0]
            inside = (shares > 0.5).to(owned.device).expand(batch, -1, -1)
            owned[inside] = concept
    return owned


def group_tokens(concepts: Tensor) -> list[RegionTokens]:
    """The tokens of every image grouped by the concept that owns them. concepts: B rows columns
    (`place_concepts`)."""
    groups = []
    for image, row in enumerate(concepts.flatten(1)):
        for concept in row.unique().tolist():
            groups.append(
                RegionTokens(
                    image, None if concept < 0 else concept, (row == concept).nonzero().flatten()
                )
            )
    return groups
