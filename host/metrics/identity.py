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
    if comparison.identity is None:
        raise Missing(
            "no identity network: connect a MAGIC_IDENTITY loader, or name one with --identity"
        )
    references = comparison.needed_references()
    people = _embeddings(comparison.identity, references, comparison.reference_boxes)
    people = people[~people.isnan().any(1)]
    if not len(people):
        raise Missing("no reference shows a face")
    return mean_cosine(
        _embeddings(comparison.identity, comparison.images, comparison.boxes), people
    )


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
