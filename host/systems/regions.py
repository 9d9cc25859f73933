"""Whose each place of the picture is, in one model call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...magic.concept_regions import concept_shares
from ...magic.layout import SemanticLayout, area_cells
from ...magic.reference_attention import RegionTokens, group_tokens, place_concepts
from ..layout.patch import LayoutPatch
from ..layout.tracker import LayoutTracker
from ..sampling.backbone import LayerView
from ..sampling.rows import SamplingRows

_Where = tuple[Any, tuple[int, int]]
"""A cond, and the grid of a layer's tokens."""


@dataclass(frozen=True, eq=False)
class ConceptRegions:
    """The concepts' regions in one model call, by the layout of the call before.

    rows: of our prompt; layouts: by the id of each of our conds; spans: the token positions of the
    concepts' phrases; targets: for each concept the region that the user painted, or None; batch:
    pictures in the call; latent_size: rows and columns of the whole.
    """

    rows: SamplingRows
    layouts: Mapping[Any, SemanticLayout | None]
    spans: Sequence[Sequence[int]]
    targets: Sequence[Tensor | None]
    batch: int
    latent_size: tuple[int, int]
    _owners: dict[_Where, Tensor] = field(default_factory=dict)
    _groups: dict[_Where, list[RegionTokens]] = field(default_factory=dict)

    def owners(self, view: LayerView) -> Tensor | None:
        """The concept at each token, B rows columns, -1 for none; None where that is not known
        yet."""
        layout, targets = self.layouts[view.cond], self.targets
        if layout is not None and layout.regions.shape[0] != self.batch:
            layout = None
        if layout is None and any(target is None for target in targets):
            return None
        if (view.cond, view.grid) not in self._owners:
            if (area := self.rows.areas.get(view.cond)) is not None:
                size = self.latent_size
                targets = tuple(t if t is None else _cut(t, area, size) for t in targets)
            owners = None if layout is None else layout.concepts(self.spans)
            self._owners[view.cond, view.grid] = place_concepts(
                owners, targets, self.batch, view.grid
            )
        return self._owners[view.cond, view.grid]

    def groups(self, view: LayerView) -> list[RegionTokens] | None:
        """The tokens of each region; None where these are not known yet."""
        if (owners := self.owners(view)) is None:
            return None
        if (view.cond, view.grid) not in self._groups:
            self._groups[view.cond, view.grid] = group_tokens(owners)
        return self._groups[view.cond, view.grid]


def regions_of_concepts(
    layout: LayoutPatch, tracker: LayoutTracker, inside: Collection[int], x: Tensor
) -> list[Tensor | None]:
    """Where each concept is, softly, in a model call on `x` (B C h w), by the layout as the call
    before has left it: B H W in 0..1; None for nowhere. inside: as for `concept_shares`."""
    picture, batch, owners = tracker.picture, x.shape[0], None
    if picture is not None and picture.regions.shape[0] == batch:
        owners = picture.concepts(layout.prompt.spans)
    return [
        None if share is None or not bool(share.any()) else share.to(x.device)
        for share in concept_shares(owners, layout.targets, inside, batch)
    ]


def areas_of_conds(guider: Any) -> dict[Any, tuple[int, ...]]:
    """The areas of all conds that cover a part of the picture only, by their ids."""
    return {
        cond["uuid"]: tuple(cond["area"])
        for conds in guider.conds.values()
        for cond in conds or ()
        if "area" in cond
    }


def share_in_area(share: Tensor, area: Sequence[int] | None, size: tuple[int, int]) -> Tensor:
    """The part of a region (B H W) that a cond's area of a latent of `size` has; all of it without
    one."""
    if area is None:
        return share
    rows, columns = area_cells(area, share.shape[1:], size)
    return share[:, rows, columns]


def check_whole(view: LayerView, rows: SamplingRows, size: tuple[int, int], pixels: int) -> None:
    """ValueError when a layer shows a part of the picture only. size: of the whole in latent
    pixels, which have sides of `pixels`."""
    if view.cond not in rows.areas and view.latent_size != size:
        part, whole = (
            f"{columns * pixels}x{row * pixels}" for row, columns in (view.latent_size, size)
        )
        raise ValueError(
            f"the model runs on {part} of {whole} pixels: another node cuts the picture into tiles"
            " (Tiled Diffusion, MultiDiffusion), and MagicFace needs all of it at once. Remove it"
        )


def stretches(steps: Sequence[int]) -> str:
    """Steps as people write them: '1-3, 7'."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and parts[-1][-1] == step - 1:
            parts[-1][-1] = step
        else:
            parts.append([step, step])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts) or "none"


def _cut(target: Tensor, area: Sequence[int], size: tuple[int, int]) -> Tensor:
    """The part of a painted region (1 H W) that lies in an area of a latent of `size`."""
    rows, columns = area_cells(area, target.shape[1:], size)
    return target[..., rows, columns]
