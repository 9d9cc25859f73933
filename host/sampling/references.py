"""Reference images as the model needs them: latents at their own size, and their own prompts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...magic.blocks import Block, parse_weights
from ...magic.concepts import Cells, Concept, visible_tokens
from ...magic.curves import Curve
from ...magic.messages import shown
from ..text.prompts import encode
from .backbone import Backbone

_MINIMUM_SIDE = 64


@dataclass(frozen=True, eq=False)
class Reference:
    """One reference image.

    concept: index of its concept; latent: 1 C h w as the VAE gives it; mask: H W in 0..1, None for
    all of it; strength: added to the logits of its tokens; conditioning: its prompt's; cells: how
    the mask is laid on tokens.
    """

    concept: int
    latent: Tensor
    mask: Tensor | None
    strength: float
    conditioning: list[Any]
    cells: Cells = "share"

    def grid(self, downscale: int) -> tuple[int, int]:
        """Rows and columns of its tokens in layers whose tokens have sides of `downscale` latent
        pixels."""
        rows, columns = self.latent.shape[-2:]
        return -(-rows // downscale), -(-columns // downscale)

    def visible_tokens(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """As `magic.concepts.visible_tokens`, by its own mask."""
        return visible_tokens(self.mask, grid, self.cells)


def prepare_references(
    concepts: Sequence[Concept], clip: Any, vae: Any, backbone: Backbone, cells: Cells = "share"
) -> list[Reference]:
    """Encodes the images and prompts of all concepts. Images keep their aspect; what is larger than
    the model's own area is reduced. cells: how masks are laid on tokens."""
    conditionings: dict[str, list[Any]] = {}
    references = []
    for index, concept in enumerate(concepts):
        if concept.images is None:
            continue
        prompt = concept.prompt or concept.phrase
        if prompt not in conditionings:
            conditionings[prompt] = _with_guidance(encode(clip, prompt), backbone.habits.guidance)
        # What a curve says is added in each model call.
        strength = 0.0 if concept.curve is not None else strength_on(backbone, concept)
        for i, image in enumerate(concept.views):
            mask = (
                None
                if concept.mask is None
                else concept.mask[i if concept.mask.shape[0] > 1 else 0]
            )
            latent = vae.encode(fit(image[None], backbone))
            references.append(
                Reference(index, latent, mask, strength, conditionings[prompt], cells)
            )
    return references


def strength_on(backbone: Backbone, concept: Concept) -> float:
    """The strength of a concept on a kind of model, which turns words into numbers."""
    level = concept.level
    return concept.strength if level is None else backbone.habits.strengths[level]


def curve_on(backbone: Backbone, concept: Concept) -> Curve | None:
    """The curve of a concept in the strengths of a kind of model, None without one."""
    return None if concept.curve is None else concept.curve.of(strength_on(backbone, concept))


def weights_on(backbone: Backbone, concept: Concept) -> dict[Block, float]:
    """How much the tokens of a concept count in blocks of a kind of model, where that is not 1; of
    a block that is named twice, what comes last. ValueError when there is no such block."""
    weights: dict[Block, float] = {}
    for names, weight in parse_weights(concept.layer_weights):
        try:
            blocks = backbone.parse_layers(names)
        except ValueError as error:
            raise ValueError(
                f"layer_weights of concept '{shown(concept.phrase)}': {error}"
            ) from error
        weights.update(dict.fromkeys(blocks, weight))
    return {block: weight for block, weight in weights.items() if weight != 1}


def _with_guidance(conditioning: list[Any], guidance: float | None) -> list[Any]:
    """A conditioning that says how strongly it guides, to models that are told."""
    if guidance is None:
        return conditioning
    return [[tensor, {**options, "guidance": guidance}] for tensor, options in conditioning]


def check_latents(latents: Iterable[Tensor], channels: int) -> None:
    """ValueError when the VAE is of another model. channels: of the model's latents."""
    for latent in latents:
        if latent.shape[1] != channels:
            raise ValueError(
                f"the VAE makes latents of {latent.shape[1]} channels, the model has"
                f" {channels}: connect the VAE of the model"
            )


def advise(references: Sequence[Reference], backbone: Backbone, inject_at: float) -> None:
    """Says in the log when settings are far from what is usual on this kind of model."""
    habits = backbone.habits
    strongest = max((reference.strength for reference in references), default=0.0)
    if strongest > 1.5 * habits.strengths["strong"]:
        logging.warning(
            "MagicFace: a strength of %g is much for this kind of model: %s. The preset 'normal' of"
            " MagicFace Concept fits every model",
            strongest,
            ", ".join(f"{level} is {value:g}" for level, value in habits.strengths.items()),
        )
    is_transformer = backbone.context is not None
    if is_transformer and inject_at > habits.inject_at:
        logging.info(
            "MagicFace: inject_at is %g; on this kind of model %g lets less of the references spill"
            " over",
            inject_at,
            habits.inject_at,
        )


def fit(image: Tensor, backbone: Backbone) -> Tensor:
    """A picture (1 H W 3) at a size at which the model sees references: at most its own area,
    sides in whole latent pixels."""
    height, width = image.shape[1:3]
    scale = min(1.0, backbone.native_side / math.sqrt(height * width))
    return rescale(image, max(scale, _MINIMUM_SIDE / min(height, width)), backbone.pixels)


def rescale(image: Tensor, scale: float, step: int) -> Tensor:
    """A picture (1 H W 3) at another size, its sides multiples of `step` pixels."""
    height, width = image.shape[1:3]
    size = tuple(max(step, round(side * scale / step) * step) for side in (height, width))
    if size == (height, width):
        return image
    out = F.interpolate(image.movedim(-1, 1).float(), size=size, mode="bicubic", antialias=True)
    return out.clamp(0, 1).movedim(1, -1)


def check_masks(
    references: Sequence[Reference],
    concepts: Sequence[Concept],
    blocks: Sequence[Block],
    backbone: Backbone,
) -> None:
    """ValueError when a mask leaves nothing of a reference in one of the layers."""
    for reference in references:
        for downscale in {layer.downscale for layer in backbone.layers if layer.block in blocks}:
            grid = reference.grid(downscale)
            if len(reference.visible_tokens(grid)[0]) == 0:
                phrase = concepts[reference.concept].phrase
                raise ValueError(
                    f"mask of concept '{phrase}' is empty after scaling to {grid[1]}x{grid[0]}: "
                    "paint a larger region, or crop the image closer"
                )


class ReferenceImage(Protocol):
    """What the reference pass needs to know of a picture. latent: 1 C h w as the VAE gives it;
    conditioning: under which it is denoised."""

    @property
    def latent(self) -> Tensor: ...

    @property
    def conditioning(self) -> list[Any]: ...


def places_of_concept(
    references: Sequence[Reference], concept: int, downscale: int
) -> list[tuple[int, Tensor, tuple[int, int]]]:
    """Whose the tokens of a concept are, in the order in which a layer has them: reference, the
    tokens' places, and the grid of these."""
    places = []
    # References run in batches: their tokens come in the order of these.
    for i in (i for group in alike(references) for i in group if references[i].concept == concept):
        grid = references[i].grid(downscale)
        places.append((i, references[i].visible_tokens(grid)[0], grid))
    return places


def batched_conditioning(references: Sequence[ReferenceImage]) -> list[Any]:
    """One conditioning for several references (`alike`): theirs when they share it, else one whose
    rows are theirs."""
    conditioning = references[0].conditioning
    if all(reference.conditioning is conditioning for reference in references):
        return conditioning
    # One may come from a file, another from a text encoder on the GPU.
    device = conditioning[0][0].device
    tensor = torch.cat([reference.conditioning[0][0].to(device) for reference in references])
    options = dict(conditioning[0][1])
    if options.get("pooled_output") is not None:
        options["pooled_output"] = torch.cat(
            [reference.conditioning[0][1]["pooled_output"].to(device) for reference in references]
        )
    return [[tensor, options]]


def alike(references: Sequence[ReferenceImage]) -> list[list[int]]:
    """Indices of references that can run as one batch: same latent size, and the same conditioning
    or plain ones of equal length."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, reference in enumerate(references):
        conditioning = reference.conditioning
        is_plain = len(conditioning) == 1 and set(conditioning[0][1]) <= {"pooled_output"}
        tensor, pooled = conditioning[0][0], conditioning[0][1].get("pooled_output")
        kind = (
            (tensor.shape, None if pooled is None else pooled.shape)
            if is_plain
            else id(conditioning)
        )
        groups.setdefault((reference.latent.shape, kind), []).append(index)
    return list(groups.values())
