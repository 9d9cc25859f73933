"""A picture drawn again under other words: it begins with the noise of its inversion, and holds the
structure of the picture until a step.

The structure is where the places of the picture look: the inversion's queries and keys, met by the
run's own values (Plug-and-Play, arXiv 2211.12572). With the inversion's values it is the look as
well, and words act past the picture's own attention only. What must not change is drawn to the
picture that was inverted, as in DiffEdit (arXiv 2210.11427).
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ...magic.blocks import Block
from ...magic.feature_fusion import Features
from ..inversion.run import Inversion
from ..inversion.start import InvertedNoise
from ..sampling.backbone import Backbone, LayerView
from ..sampling.features import FeatureBank, StepFeatures
from ..sampling.options import ModelOptions
from ..sampling.patch import PatchRun, Predict, SamplingPatch, SamplingStart
from ..sampling.range import SamplingRange
from ..sampling.reference_memory import ReferenceRoom
from ..sampling.reference_pass import ReferencePass
from ..sampling.rows import rows_of_roles
from .inverted_start import InvertedStart
from .magicstyle import (
    InvertedPicture,
    PictureFeatures,
    Trajectories,
    cast_features,
    check_same_grid,
    feature_bytes,
    features_of,
)
from .placement import PlacedPictures

Hold = Literal["structure", "structure and look"]
HOLDS: tuple[Hold, ...] = get_args(Hold)
"""What of an inversion is held: queries and keys, or queries, keys and values."""


@dataclass(frozen=True, eq=False)
class PromptEditPatch(SamplingPatch["PromptEditRun"]):
    """Everything a run needs.

    content: the picture that is edited, or several of one size; structure: share of its features,
    0..1, the rest is the run's own; hold: which features; backbone: of the model; blocks: where
    these are held; range: until when; keep: 1 or B, H W in 0..1 over the picture, what must not
    change, None for nothing; name: another one for each patch.
    """

    gives_way = True
    content: Inversion
    structure: float
    hold: Hold
    backbone: Backbone
    blocks: tuple[Block, ...]
    range: SamplingRange
    keep: Tensor | None = None
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def key(self) -> str:
        return f"magicstyle_edit_{self.name}"

    @property
    def _start(self) -> InvertedStart:
        return InvertedStart(
            self.content,
            self.content.latents[0],
            self.backbone.pixels,
            "MagicStyle Edit",
            "connect what must not change to keep of MagicStyle Edit",
        )

    def start_samples(self, model: Any) -> Tensor:
        """Where sampling starts, as the samples of a LATENT."""
        return self._start.samples(model)

    def start_noise(self, model: Any) -> InvertedNoise:
        """The same as a NOISE."""
        return self._start.noise(model)

    def open_run(self, start: SamplingStart) -> PromptEditRun:
        self._start.check(start)
        return PromptEditRun(self, start)


class PromptEditRun(PatchRun):
    """One sampling run of an edit."""

    def __init__(self, patch: PromptEditPatch, start: SamplingStart):
        self._patch, self._start = patch, start
        self._range = patch.range.sigmas(start.model_sampling)
        pictures = [InvertedPicture(patch.content, row) for row in range(patch.content.batch)]
        self._places = PlacedPictures("same", patch.backbone, pictures, [])
        self._room = ReferenceRoom(feature_bytes(pictures, patch.backbone, patch.blocks))
        references = ReferencePass(pictures, Trajectories(pictures), patch.backbone, patch.blocks)
        self._features: StepFeatures[Features] = StepFeatures(
            start.guider, patch.backbone, patch.blocks, references, None, PictureFeatures
        )
        self._rows: frozenset[Any] | None = None
        self._mask_and_content: tuple[Tensor, Tensor] | None = None

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
        if self._patch.structure and self._range.covers(sigma):
            model_options = self._holding(sigma, x, timestep, model_options)
        return self._keeping(executor(x, timestep, model_options, *args, **kwargs))

    def finish(self, samples: Tensor) -> None:
        if self._features.calls:
            logging.info("MagicStyle Edit: %s", self._features.summary())

    def release(self) -> None:
        self._features.close()
        self._mask_and_content = None
        del self._features, self._start

    def _holding(
        self, sigma: float, x: Tensor, timestep: Tensor, model_options: ModelOptions
    ) -> ModelOptions:
        """Options of a model call that holds the structure."""
        self.expected += 1
        self._room.ensure(self._start.guider, x.device)
        bank = self._features.at(sigma, timestep, model_options)
        if self._rows is None:
            # Guidance is a difference of two: both hold the structure, or it would undo it.
            self._rows = rows_of_roles(self._start.guider, self._start.guider.conds)
        return self._patch.backbone.with_rule(
            model_options,
            self._patch.blocks,
            self._rows,
            x.shape[0],
            lambda view: self._hold(bank, view),
        )

    def _hold(self, bank: FeatureBank[Features], view: LayerView) -> Tensor:
        """The `Rule`: the content's queries meet the content's keys and the picture's values."""
        self.has_reached = True
        entries, share = bank[view.layer], self._patch.structure
        check_same_grid(view, entries[0].grid, "MagicStyle Edit")
        contents, _ = self._places.place([cast_features(one, view.q) for one in entries], view)
        rows = []
        for image in range(view.q.shape[0]):
            one = slice(image, image + 1)
            content = contents[image if len(contents) > 1 else 0]
            own = features_of(view, image)
            q, k = torch.lerp(own.q, content.q, share), torch.lerp(own.k, content.k, share)
            v = own.v
            if self._patch.hold == "structure and look":
                v = torch.lerp(v, content.v, share)
            rows.append(view.attend_beside(one, q, k, v, None))
        return torch.cat(rows)

    def _keeping(self, prediction: Tensor) -> Tensor:
        """What the model predicts (the clean picture, B C h w), where it may change; where it may
        not, what was inverted."""
        if self._patch.keep is None:
            return prediction
        if self._mask_and_content is None:
            mask = F.interpolate(
                self._patch.keep[:, None].float(), size=prediction.shape[-2:], mode="area"
            )
            mask = mask.view(len(mask), 1, *(1,) * (prediction.ndim - 4), *mask.shape[-2:])
            content = self._patch.content.latents[-1]
            self._mask_and_content = mask.to(prediction), content.to(prediction)
        mask, content = self._mask_and_content
        return torch.lerp(prediction, content.expand_as(prediction), mask.expand_as(prediction))
