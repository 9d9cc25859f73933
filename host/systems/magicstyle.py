"""MagicStyle in a sampling run: content and style follow their inversions beside the picture, whose
attention takes from both (arXiv 2409.08156)."""

from __future__ import annotations

import functools
import logging
import math
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...magic.blocks import Block
from ...magic.feature_fusion import (
    Features,
    Fusion,
    StyledTokens,
    adapt_statistics,
    feature_fusion_attention,
    style_shares,
    styled_tokens,
)
from ...magic.positions import Placement
from ...magic.reference_passes import BandStarts
from ..inversion.run import Inversion
from ..inversion.start import InvertedNoise
from ..sampling.backbone import Backbone, LayerKey, LayerView
from ..sampling.feature_store import FeatureStore
from ..sampling.features import FeatureBank, StepFeatures
from ..sampling.options import ModelOptions
from ..sampling.patch import PatchRun, Predict, SamplingPatch, SamplingStart
from ..sampling.range import SamplingRange, noise_bands
from ..sampling.reference_memory import ReferenceRoom, check_kept_room
from ..sampling.reference_pass import ReferencePass
from ..sampling.references import ReferenceImage
from ..sampling.rows import rows_of_roles
from .inverted_start import InvertedStart
from .placement import PlacedPictures


@dataclass(frozen=True, eq=False)
class Style:
    """A style and where it acts. inversion: of its picture; weight: 0..1; mask: H W in 0..1 over
    the content's picture, None for everywhere."""

    inversion: Inversion
    weight: float
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class InvertedPicture:
    """One picture of an inversion, as the reference pass takes it. row: its place in the batch."""

    inversion: Inversion
    row: int

    @property
    def latent(self) -> Tensor:
        """1 C h w, of which only the shape matters in a reference pass."""
        return self.inversion.latents[-1, self.row : self.row + 1]

    @property
    def conditioning(self) -> list[Any]:
        return self.inversion.conditioning


class Trajectories:
    """A `LatentSource`: each picture as it was at that sigma on its way to noise."""

    def __init__(self, pictures: Sequence[InvertedPicture]):
        self._pictures = pictures

    def at(self, reference: int, latent: Tensor, sigma: Tensor, model_sampling: Any) -> Tensor:
        picture = self._pictures[reference]
        latents = picture.inversion.at(float(sigma))
        return latents[picture.row : picture.row + 1].to(latent)


@dataclass(frozen=True, eq=False)
class MagicStylePatch(SamplingPatch["MagicStyleRun"]):
    """Everything a run needs.

    content: the picture that is drawn anew, or several of one size; styles: each with its place;
    fusion: how features are fused; backbone: of the model; blocks: where; range: when;
    fuses_negative: in the unconditional rows too; adain: how far the
    start takes the styles' statistics, 0..1; store: features of earlier runs, None to compute
    them in each; bands: of noise levels that share a reference pass, None for one at each level;
    placement: where the styles' keys lie, in models that turn them by position; name: another one
    for each patch.
    """

    gives_way = True
    content: Inversion
    styles: tuple[Style, ...]
    fusion: Fusion
    backbone: Backbone
    blocks: tuple[Block, ...]
    range: SamplingRange
    fuses_negative: bool
    adain: float
    store: FeatureStore | None = None
    bands: BandStarts | None = None
    placement: Placement = "same"
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def key(self) -> str:
        return f"magicstyle_{self.name}"

    def shares(self, size: tuple[int, int]) -> Tensor:
        """How much each style counts at each place: S rows columns."""
        weights = [style.weight for style in self.styles]
        return style_shares(weights, [style.mask for style in self.styles], size)

    def start_latent(self) -> Tensor:
        """Where sampling starts: the content's noise with the styles' statistics, in the model's
        latent space."""
        first = self.content.latents[0]
        styles = [style.inversion.latents[0] for style in self.styles]
        shares = self.shares((first.shape[-2], first.shape[-1]))
        return adapt_statistics(first, styles, shares, self.adain)

    @property
    def _start(self) -> InvertedStart:
        return InvertedStart(
            self.content,
            self.start_latent(),
            self.backbone.pixels,
            "MagicStyle Apply",
            "say where a style acts by the mask of MagicStyle Reference",
        )

    def start_samples(self, model: Any) -> Tensor:
        """The same as the samples of a LATENT."""
        return self._start.samples(model)

    def start_noise(self, model: Any) -> InvertedNoise:
        """The same as a NOISE."""
        return self._start.noise(model)

    def open_run(self, start: SamplingStart) -> MagicStyleRun:
        self._start.check(start)
        return MagicStyleRun(self, start)


class MagicStyleRun(PatchRun):
    """One sampling run with content and styles."""

    def __init__(self, patch: MagicStylePatch, start: SamplingStart):
        self._patch, self._start = patch, start
        self._range = patch.range.sigmas(start.model_sampling)
        contents = [InvertedPicture(patch.content, row) for row in range(patch.content.batch)]
        styles = [InvertedPicture(style.inversion, 0) for style in patch.styles]
        pictures = [*contents, *styles]
        self._places = PlacedPictures(patch.placement, patch.backbone, contents, styles)
        self._room = ReferenceRoom(feature_bytes(pictures, patch.backbone, patch.blocks))
        if patch.store is not None:
            check_kept_room(self._room.size, start.steps)
        references = ReferencePass(pictures, Trajectories(pictures), patch.backbone, patch.blocks)
        self._features: StepFeatures[Features] = StepFeatures(
            start.guider,
            patch.backbone,
            patch.blocks,
            references,
            patch.store,
            PictureFeatures,
            noise_bands(patch.bands, start.model_sampling),
        )
        self._rows: frozenset[Any] | None = None
        self._groups = StyleGroups(patch.shares)

    def predict(
        self,
        executor: Predict,
        x: Tensor,
        timestep: Tensor,
        model_options: ModelOptions,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        sigma = float(timestep.flatten()[0])
        if not self._range.covers(sigma):
            return executor(x, timestep, model_options, *args, **kwargs)
        self.expected += 1
        self._room.ensure(self._start.guider, x.device)
        bank = self._features.at(sigma, timestep, model_options)
        patch = self._patch
        options = patch.backbone.with_rule(
            model_options,
            patch.blocks,
            self._rows_to_fuse(),
            x.shape[0],
            lambda view: self._fuse(bank, view),
        )
        return executor(x, timestep, options, *args, **kwargs)

    def finish(self, samples: Tensor) -> None:
        if self._features.calls:
            logging.info("MagicStyle: %s", self._features.summary())

    def release(self) -> None:
        self._features.close()
        del self._features, self._start, self._groups

    def _rows_to_fuse(self) -> frozenset[Any]:
        """The ids of the conds whose rows are drawn with content and styles."""
        if self._rows is None:
            roles = [
                role
                for role in self._start.guider.conds
                if self._patch.fuses_negative or "negative" not in role
            ]
            self._rows = rows_of_roles(self._start.guider, roles)
        return self._rows

    def _fuse(self, bank: FeatureBank[Features], view: LayerView) -> Tensor:
        """The `Rule`: feature fusion attention, picture by picture."""
        self.has_reached = True
        features = bank[view.layer]
        check_same_grid(view, features[0].grid, "MagicStyle")
        groups = self._groups.at(view.grid, view.q.device)
        contents, styles = self._places.place(
            [cast_features(one, view.q) for one in features], view
        )
        out = torch.empty_like(view.q)
        for image in range(view.q.shape[0]):
            one = slice(image, image + 1)
            out[one] = feature_fusion_attention(
                features_of(view, image),
                contents[image if len(contents) > 1 else 0],
                styles,
                groups,
                self._patch.fusion,
                functools.partial(view.attend_beside, one),
            )
        return out


class PictureFeatures:
    """Gathers what each layer saw in each picture: the contents first, then the styles."""

    def __init__(self) -> None:
        self._features: dict[LayerKey, dict[int, Features]] = {}

    def take(self, reference: int, view: LayerView, row: int) -> None:
        self._features.setdefault(view.layer, {})[reference] = features_of(view, row)

    def bank(self) -> FeatureBank[Features]:
        return {
            layer: [by_picture[picture] for picture in sorted(by_picture)]
            for layer, by_picture in self._features.items()
        }


def feature_bytes(
    pictures: Sequence[ReferenceImage], backbone: Backbone, blocks: Collection[Block]
) -> int:
    """Of the queries, keys and values of all pictures in one step; 0 for models of which that is
    not known."""
    tokens = sum(
        layer.depth * math.prod(-(-side // layer.downscale) for side in picture.latent.shape[-2:])
        for picture in pictures
        for layer in backbone.layers
        if layer.block in blocks
    )
    # `Backbone.feature_bytes` is that of a key and a value.
    return tokens * backbone.feature_bytes * 3 // 2


def check_same_grid(view: LayerView, content: tuple[int, int], node: str) -> None:
    """ValueError when a model call shows another part of the picture than was inverted. content:
    rows and columns of its tokens; node: who needs it."""
    if view.grid != content:
        was, now = (f"{grid[1]}x{grid[0]}" for grid in (content, view.grid))
        raise ValueError(
            f"layer {view.layer[0]}: the content has {was} tokens, this call {now}."
            f" {node} needs the whole picture at once: use ConditioningSetMask, not areas,"
            " and no node that changes the size"
        )


class StyleGroups:
    """Which tokens take which style, worked out once for each grid of a sampling run. shares: how
    much each style counts at each place of a grid (rows, columns): S rows columns."""

    def __init__(self, shares: Callable[[tuple[int, int]], Tensor]):
        self._shares = shares
        self._groups: dict[tuple[int, int], list[StyledTokens]] = {}

    def at(self, grid: tuple[int, int], device: torch.device) -> list[StyledTokens]:
        """Those of a grid, where its tokens are."""
        if grid not in self._groups:
            self._groups[grid] = [
                StyledTokens(
                    group.style,
                    None if group.index is None else group.index.to(device),
                    group.share.to(device),
                )
                for group in styled_tokens(self._shares(grid))
            ]
        return self._groups[grid]


def features_of(view: LayerView, row: int) -> Features:
    """What a layer sees in one picture: its queries, and the keys and values of its own tokens."""
    one = slice(row, row + 1)
    return Features(view.q[one], view.k[one, view.image], view.v[one, view.image], view.grid)


def cast_features(features: Features, like: Tensor) -> Features:
    """In the type and on the device of what a layer has now."""
    return Features(features.q.to(like), features.k.to(like), features.v.to(like), features.grid)
