"""CSIM: whether the same person is seen."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...magic.boxes import Box
from ...magic.metrics import mean_cosine
from .comparison import AT_ONCE, Comparison, Missing


def csim(comparison: Comparison) -> Tensor:
    """The mean cosine to the references that show a face: B, NaN for pictures that show none."""
    network = _network(comparison)
    people = _people(
        network, comparison.needed_references(), comparison.reference_boxes, "no reference"
    )
    return mean_cosine(_embeddings(network, comparison.images, comparison.boxes), people)


def copying(comparison: Comparison) -> Tensor:
    """How much liker a picture is to the references themselves than to other pictures of the same
    person: B, cosines' difference in -2..2, NaN as in `csim`. Near 0 is the person, far above 0
    these very pictures."""
    network = _network(comparison)
    references = _people(
        network, comparison.needed_references(), comparison.reference_boxes, "no reference"
    )
    if comparison.others is None:
        raise Missing("no other pictures of the person: connect some")
    others = _people(network, comparison.others, comparison.other_boxes, "no other picture")
    own = _embeddings(network, comparison.images, comparison.boxes)
    return mean_cosine(own, references) - mean_cosine(own, others)


def _network(comparison: Comparison) -> Any:
    if comparison.identity is None:
        raise Missing(
            "no identity network: connect a MAGIC_IDENTITY loader, or name one with --identity"
        )
    return comparison.identity


def _people(
    network: Any, images: Tensor, boxes: tuple[tuple[Box, ...], ...] | None, what: str
) -> Tensor:
    """N D, of the pictures that show a face."""
    people = _embeddings(network, images, boxes)
    people = people[~people.isnan().any(1)]
    if not len(people):
        raise Missing(f"{what} shows a face")
    return people


def _embeddings(network: Any, images: Tensor, boxes: tuple[tuple[Box, ...], ...] | None) -> Tensor:
    """B D; NaN for pictures whose boxes hold no face. The largest face of a picture counts."""
    if boxes is None:
        return torch.cat(
            [
                network.embed(images[i : i + AT_ONCE, ..., :3])
                for i in range(0, len(images), AT_ONCE)
            ]
        ).cpu()
    rows: list[Tensor | None] = []
    for image, faces in zip(images, boxes, strict=True):
        face = (
            max(faces, key=lambda box: box.area).clipped((image.shape[0], image.shape[1]))
            if faces
            else None
        )
        rows.append(
            None if face is None else network.embed_face(image[..., :3], face.corners).cpu()
        )
    width = next((len(row) for row in rows if row is not None), 1)
    return torch.stack([torch.full((width,), math.nan) if row is None else row for row in rows])
