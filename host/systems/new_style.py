"""The look of another picture in one that is drawn from a prompt alone: nothing is inverted that is
to be drawn anew.

What such a picture's queries meet beside its own keys is known from StyleAligned (arXiv 2312.02133)
and Visual Style Prompting (arXiv 2402.12974): the keys and values of a style picture that runs
along, or of the first picture of the batch. The rule is MagicStyle's with the picture itself as the
content (`magic.feature_fusion`).
"""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...magic.blocks import Block
from ...magic.feature_fusion import (
    Features,
    Fusion,
    adapt_statistics,
    feature_fusion_attention,
    style_shares,
)
from ...magic.positions import Placement
from ...magic.reference_passes import BandStarts
from ..inversion.run import Inversion
from ..sampling.backbone import Backbone, LayerView
from ..sampling.feature_store import FeatureStore
from ..sampling.features import FeatureBank, StepFeatures
from ..sampling.options import ModelOptions
from ..sampling.patch import PatchRun, Predict, SamplingPatch, SamplingStart
from ..sampling.range import SamplingRange, noise_bands
from ..sampling.reference_memory import ReferenceRoom, check_kept_room
from ..sampling.reference_pass import ReferencePass, SeededNoise
from ..sampling.rows import rows_of_roles
from .magicstyle import (
    PictureFeatures,
    StyleGroups,
    cast_features,
    feature_bytes,
    features_of,
)
from .placement import PlacedPictures, beside_itself

_SEED = 0
"""Of the noise that is laid over a picture which was not inverted."""


@dataclass(frozen=True, eq=False)
class StylePicture:
    """A picture whose look is taken.

    latent: 1 C h w as the VAE gives it; conditioning: under which it is seen; weight: 0..1; mask: H
    W in 0..1 over the new picture, None for everywhere; inversion: its way to noise, None to lay
    noise over it.
    """

    latent: Tensor
    conditioning: list[Any]
    weight: float = 1.0
    mask: Tensor | None = None
    inversion: Inversion | None = None

    def clean(self, model: Any) -> Tensor:
        """1 C h w in the space of a loaded model's latents."""
        if self.inversion is not None:
            return self.inversion.latents[-1]
        clean: Tensor = model.process_latent_in(self.latent)
        return clean


class StyleLatents:
    """A `LatentSource`: inverted pictures on their way to noise, others under one noise for the
    whole run."""

    def __init__(self, pictures: Sequence[StylePicture]):
        self._pictures, self._noise = pictures, SeededNoise(_SEED, per_step=False)

    def at(self, reference: int, latent: Tensor, sigma: Tensor, model_sampling: Any) -> Tensor:
        inversion = self._pictures[reference].inversion
        if inversion is None:
            return self._noise.at(reference, latent, sigma, model_sampling)
        return inversion.at(float(sigma)).to(latent)


@dataclass(frozen=True, eq=False)
class NewStylePatch(SamplingPatch["NewStyleRun"]):
    """Everything a run needs.

    pictures: whose look is taken; without any, that of the first picture of the batch; strength:
    added to the logits of style tokens (natural log); colour: how far the prediction takes the
    styles' mean and contrast, 0..1; backbone: of the model; blocks: where; range: when; placement:
    where the styles' keys lie, in models that turn them by position; store: features of earlier
    runs, None to compute them in each; bands: of noise levels that share a reference pass, None for
    one at each level; name: another one for each patch.
    """

    gives_way = True
    pictures: tuple[StylePicture, ...]
    strength: float
    colour: float
    backbone: Backbone
    blocks: tuple[Block, ...]
    range: SamplingRange
    placement: Placement = "same"
    store: FeatureStore | None = None
    bands: BandStarts | None = None
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def key(self) -> str:
        return f"magicstyle_new_{self.name}"

    @property
    def fusion(self) -> Fusion:
        """The picture's own queries, its own keys and the style's."""
        return Fusion(1.0, 0.0, "content+style", self.strength)

    def shares(self, size: tuple[int, int]) -> Tensor:
        """How much each style counts at each place: S rows columns."""
        if not self.pictures:
            return torch.ones(1, *size)
        weights = [picture.weight for picture in self.pictures]
        return style_shares(weights, [picture.mask for picture in self.pictures], size)

    def open_run(self, start: SamplingStart) -> NewStyleRun:
        if not self.pictures and start.shape[0] == 1:
            raise ValueError(
                "there is one picture and no style: connect image and vae, or styles, or draw a"
                " batch of two or more, which takes the look of its first"
            )
        return NewStyleRun(self, start)


class NewStyleRun(PatchRun):
    """One sampling run with styles and no content."""

    def __init__(self, patch: NewStylePatch, start: SamplingStart):
        self._patch, self._start = patch, start
        self._range = patch.range.sigmas(start.model_sampling)
        self._room = ReferenceRoom(feature_bytes(patch.pictures, patch.backbone, patch.blocks))
        self._places = PlacedPictures(patch.placement, patch.backbone, [], patch.pictures)
        self._features: StepFeatures[Features] | None = None
        if patch.pictures:
            if patch.store is not None:
                check_kept_room(self._room.size, start.steps)
            references = ReferencePass(
                patch.pictures, StyleLatents(patch.pictures), patch.backbone, patch.blocks
            )
            self._features = StepFeatures(
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
        bank = None
        if self._features is not None:
            bank = self._features.at(sigma, timestep, model_options)
        patch = self._patch
        options = patch.backbone.with_rule(
            model_options,
            patch.blocks,
            self._rows_to_style(),
            x.shape[0],
            lambda view: self._style(bank, view),
        )
        prediction: Tensor = executor(x, timestep, options, *args, **kwargs)
        return self._colour(prediction)

    def finish(self, samples: Tensor) -> None:
        if self._features is not None and self._features.calls:
            logging.info("MagicStyle: %s", self._features.summary())

    def release(self) -> None:
        if self._features is not None:
            self._features.close()
        del self._features, self._start, self._groups

    def _rows_to_style(self) -> frozenset[Any]:
        """The ids of the conds whose rows see the styles: not those of a negative prompt, so that
        guidance strengthens the look."""
        if self._rows is None:
            roles = [role for role in self._start.guider.conds if "negative" not in role]
            self._rows = rows_of_roles(self._start.guider, roles)
        return self._rows

    def _style(self, bank: FeatureBank[Features] | None, view: LayerView) -> Tensor:
        """The `Rule`: every picture's queries meet its own keys and the styles'."""
        self.has_reached = True
        if view.latent_size != self._start.latent_size and self._has_masks():
            raise ValueError(
                "a style has a mask, which lies over the whole picture, and the prompt is limited"
                " to an area of it: use ConditioningSetMask, not areas"
            )
        if bank is None:
            first = features_of(view, 0)
            styles = [beside_itself(first, self._patch.placement, self._patch.backbone, view)]
        else:
            entries = [cast_features(one, view.q) for one in bank[view.layer]]
            styles = self._places.place(entries, view)[1]
        groups = self._groups.at(view.grid, view.q.device)
        rows = []
        for image in range(view.q.shape[0]):
            own, one = features_of(view, image), slice(image, image + 1)
            attend = functools.partial(view.attend_beside, one)
            if bank is None and image == 0:
                # The one whose look the others take.
                rows.append(attend(own.q, own.k, own.v, None))
            else:
                fusion = self._patch.fusion
                rows.append(feature_fusion_attention(own, own, styles, groups, fusion, attend))
        return torch.cat(rows)

    def _colour(self, prediction: Tensor) -> Tensor:
        """What the model predicts (the clean picture, B C h w), with the styles' statistics."""
        patch = self._patch
        if not patch.colour:
            return prediction
        shares = patch.shares((prediction.shape[-2], prediction.shape[-1]))
        if not patch.pictures:
            first, others = prediction[:1], prediction[1:]
            rest = adapt_statistics(others, [first], shares, patch.colour)
            return torch.cat([first, rest])
        model = self._start.guider.inner_model
        styles = [picture.clean(model).to(prediction) for picture in patch.pictures]
        return adapt_statistics(prediction, styles, shares, patch.colour)

    def _has_masks(self) -> bool:
        return any(picture.mask is not None for picture in self._patch.pictures)
