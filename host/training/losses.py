"""The terms of a step's loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...magic import capture_losses
from .denoiser import Condition, Denoiser
from .draw import Batch, Sample
from .networks import FaceSight, Networks
from .pictures import has_surroundings
from .settings import CaptureSettings, Phase

_AROUND_FACE = 3
"""Latent pixels that are decoded around a face."""


def loss_terms(
    networks: Networks, settings: CaptureSettings, batch: Batch, phase: Phase, progress: float
) -> dict[str, Tensor]:
    """The weighted terms of a step by name, each the mean over the batch. progress: the share of
    the phase's steps that are done."""
    denoiser = networks.denoiser
    size = batch.latents.shape[-2], batch.latents.shape[-1]
    is_subject, is_composed = batch.is_kind("subject"), batch.is_kind("composed")
    is_class = batch.is_kind("class")
    # Of others like the subject the whole picture counts, and is a face to the masks.
    is_person = is_subject | is_class
    regions = torch.where(is_person[:, None, None], batch.faces, 1 - batch.faces)
    weights = capture_losses.loss_weights(regions, size)
    condition = networks.condition([sample.prompt for sample in batch.samples], size)
    refocus = phase == Phase.LORA and settings.refocus_weight > 0
    counts = torch.tensor(
        [sample.prompt.word_count for sample in batch.samples], device=batch.latents.device
    )
    present = torch.stack([counts > 0, counts > 1], 1)  # B 2
    # In a composed sample the subject's word belongs to the face, the style's to the rest. Where
    # all counts as face there is no rest: the weights cover the whole picture then, and the
    # subject's word would be driven out of all of it.
    present = present & (has_surroundings(batch.faces) | ~is_composed)[:, None]
    noisy = denoiser.noisy(batch.latents, batch.noise, batch.timesteps)
    output, maps = denoiser.predict(noisy, batch.timesteps, condition, refocus)

    target = denoiser.target(batch.latents, batch.noise, batch.timesteps)
    reconstruction = capture_losses.masked_reconstruction(
        output, target, weights if settings.masked else torch.ones_like(weights)
    )
    if progress < 0.5:
        reconstruction = torch.where(
            is_person, reconstruction, reconstruction * settings.style_weight
        )
    own = torch.tensor([sample.weight for sample in batch.samples], device=batch.latents.device)
    reconstruction = torch.where(is_class, reconstruction * own, reconstruction)
    terms = {"reconstruction": reconstruction.mean()}
    if refocus and maps is not None:
        targets = capture_losses.refocusing_targets(weights, is_composed)
        distances = capture_losses.refocusing(maps, targets, present)
        terms["refocusing"] = settings.refocus_weight * distances.mean()
    if phase == Phase.LORA and networks.faces:
        rows, clean = _face_estimates(denoiser, settings, batch, noisy, output, condition)
        if rows:
            distances = _identity_distances(
                networks.faces,
                clean,
                [batch.samples[row] for row in rows],
                denoiser.pixels_per_latent,
            )
            terms["identity"] = settings.identity_weight * distances.sum() / len(batch.samples)
    return terms


def _face_estimates(
    denoiser: Denoiser,
    settings: CaptureSettings,
    batch: Batch,
    noisy: Tensor,
    output: Tensor,
    condition: Condition,
) -> tuple[list[int], Tensor]:
    """The samples that the identity loss judges, and estimates of their clean latents, C h w each.

    The official code runs the UNet a second time, at timesteps up to 800. From about 600 on an
    estimate shows nobody, and its gradient is multiplied by the noise-to-signal ratio, so that the
    loss teaches patterns that please the face network.
    """
    rows = [row for row, sample in enumerate(batch.samples) if sample.identity is not None]
    if batch.identity_timesteps is None:
        early = denoiser.is_early(batch.timesteps, settings.identity_until).tolist()
        rows = [row for row in rows if early[row]]
        return rows, denoiser.clean(noisy[rows], output[rows], batch.timesteps[rows])
    timesteps = batch.identity_timesteps[rows]
    if not rows:
        return rows, output[rows]
    noisy = denoiser.noisy(batch.latents[rows], batch.noise[rows], timesteps)
    output, _ = denoiser.predict(noisy, timesteps, condition.of_rows(rows))
    return rows, denoiser.clean(noisy, output, timesteps)


def _identity_distances(
    faces: FaceSight, clean: Tensor, samples: Sequence[Sample], pixels_per_latent: int
) -> Tensor:
    """How far the faces in estimates of clean latents (B C h w) are from those that should be
    there: B."""
    boxes = torch.stack([_face_box(sample, faces.identity.margin) for sample in samples])
    parts, boxes = around_faces(clean, boxes, pixels_per_latent)
    crops = capture_losses.face_crops(faces.decode(parts), boxes, faces.identity.side)
    references = torch.stack([sample.identity for sample in samples if sample.identity is not None])
    return capture_losses.identity(faces.identity.embed_crops(crops), references)


def _face_box(sample: Sample, margin: float) -> Tensor:
    """The face of the picture that is being denoised, as wide as the identity network needs it. A
    subject's boxes have the margin already."""
    box = sample.picture.boxes[sample.version]
    scale = margin if sample.kind == "composed" else 1.0
    return box * torch.tensor([1.0, 1.0, scale], device=box.device)


def around_faces(latents: Tensor, boxes: Tensor, pixels_per_latent: int) -> tuple[Tensor, Tensor]:
    """The part of each latent that shows the face, one size for all, and the boxes (see face_box)
    in it.

    Decoding is the dear part of the identity loss, and a decoder sees hardly further than the few
    latent pixels that are left around.
    """
    limits = latents.shape[-2:]
    side = math.ceil(boxes[:, 2].max().item() * 2 / pixels_per_latent) + 2 * _AROUND_FACE
    height, width = min(side, limits[0]), min(side, limits[1])
    parts, corners = [], []
    for latent, (x, y, _) in zip(latents, (boxes / pixels_per_latent).tolist(), strict=True):
        top = min(max(0, round(y - height / 2)), limits[0] - height)
        left = min(max(0, round(x - width / 2)), limits[1] - width)
        parts.append(latent[:, top : top + height, left : left + width])
        corners.append([float(pixels_per_latent * left), float(pixels_per_latent * top), 0.0])
    return torch.stack(parts), boxes - torch.tensor(corners, device=boxes.device)
