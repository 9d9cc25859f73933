"""Training pictures as the training draws them: latents of jittered and mirrored versions, face
masks, and who is on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...magic.capture_losses import face_box, face_crops
from ...magic.capture_sets import CapturePicture
from ..faces.identity import Identity

_JITTER = 0.1
_LEAST_OUTSIDE = 0.5
_LONGEST = 8
_MULTIPLE = 64
"""Sides are multiples of this, so that every level of the UNet gets whole tokens."""


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """A picture in V versions, of which the odd ones are mirrored.

    source: as it came in. latents: V C h w in the model's latent space. faces: V h w, the
    share of each latent pixel that is face. boxes: V 3 (see face_box). identities: V D, whom a face
    network sees in each version; None without one.
    """

    source: CapturePicture
    latents: Tensor
    faces: Tensor
    boxes: Tensor
    identities: Tensor | None

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.source.name

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.latents.shape[-2:]
        return height, width

    @property
    def is_all_face(self) -> bool:
        """Whether the mask leaves nothing beside the face, as where there was none."""
        return not bool(has_surroundings(self.faces).any())


def has_surroundings(faces: Tensor) -> Tensor:
    """Whether something beside the face is there: a latent pixel that is half outside. faces: B h w
    -> B."""
    return (1 - faces).amax((1, 2)) >= _LEAST_OUTSIDE


def prepare_pictures(
    pictures: Sequence[CapturePicture],
    vae: Any,
    process_in: Callable[[Tensor], Tensor],
    side: int,
    versions: int,
    identity: Identity | None,
    mask_mode: str,
    device: torch.device,
    generator: torch.Generator,
    on_encoded: Callable[[], None],
) -> list[PreparedPicture]:
    """Encodes every picture `versions` times (1 or less: once, as it is). The aspect is kept; the
    area is about side x side pixels.

    process_in: latents of the VAE to the model's. identity: asked who is on each version, where
    given. mask_mode: how interpolate scales masks down to latent pixels. on_encoded: called after
    each version; may raise to cancel.
    """
    return [
        _prepare(
            picture,
            vae,
            process_in,
            side,
            versions,
            identity,
            mask_mode,
            device,
            generator,
            on_encoded,
        )
        for picture in pictures
    ]


def _prepare(
    picture: CapturePicture,
    vae: Any,
    process_in: Callable[[Tensor], Tensor],
    side: int,
    versions: int,
    identity: Identity | None,
    mask_mode: str,
    device: torch.device,
    generator: torch.Generator,
    on_encoded: Callable[[], None],
) -> PreparedPicture:
    height, width = picture.image.shape[:2]
    if max(height, width) > _LONGEST * min(height, width):
        raise ValueError(
            f"{picture.name} is {width}x{height}: a picture to learn from may be at most"
            f" {_LONGEST} times as long as wide. Cut out what matters"
        )
    size = training_size(height, width, side)
    plain = _resize(picture.image.clone().movedim(-1, 0)[None], size).clamp(0, 1)  # 1 3 H W
    mask = _resize(picture.mask.clone()[None, None], size)[0, 0].clamp(0, 1)
    latents, faces, boxes, identities = [], [], [], []
    for version in range(max(1, versions)):
        image, face = (plain.flip(-1), mask.flip(-1)) if version % 2 else (plain, mask)
        box = face_box(face, identity.margin if identity else 1.0)
        if identity:
            with torch.no_grad():
                identities.append(
                    identity.embed_crops(
                        face_crops(image.to(device), box[None].to(device), identity.side)
                    )[0]
                )
        with torch.inference_mode():
            code = vae.encode((_jitter(image, generator) if versions > 1 else image).movedim(1, -1))
        latent = process_in(code.clone().to(device, torch.float32))
        latents.append(latent)
        faces.append(
            F.interpolate(face[None, None], size=tuple(latent.shape[-2:]), mode=mask_mode)[0, 0]
        )
        boxes.append(box)
        on_encoded()
    return PreparedPicture(
        picture,
        torch.cat(latents),
        torch.stack(faces).to(device),
        torch.stack(boxes).to(device),
        torch.stack(identities) if identity else None,
    )


def training_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width for training: the picture's aspect, within the UNet's steps, and about side
    x side pixels."""
    step = min(_MULTIPLE, side)
    scale = side / math.sqrt(height * width)
    sides = (max(step, round(x * scale / step) * step) for x in (height, width))
    return tuple(sides)  # type: ignore[return-value]


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:  # B C H W
    """Fills `size` without distortion: what a rounded aspect leaves over is cut off evenly."""
    height, width = image.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    cover = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    if cover != (height, width):
        image = F.interpolate(
            image.float(),
            size=cover,
            mode="bicubic" if image.shape[1] == 3 else "bilinear",
            antialias=True,
        )
    top, left = (cover[0] - size[0]) // 2, (cover[1] - size[1]) // 2
    return image[..., top : top + size[0], left : left + size[1]]


def _jitter(image: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness and contrast, each changed by up to a tenth."""
    brightness, contrast = (1 + _JITTER * (2 * torch.rand(2, generator=generator) - 1)).tolist()
    image = (image * brightness).clamp(0, 1)
    gray = image.mean()
    out: Tensor = gray + (image - gray) * contrast
    return out.clamp(0, 1)


def masked_previews(
    pictures: Sequence[CapturePicture], masks: Sequence[Tensor], side: int = 256
) -> Tensor:
    """Small copies with what their masks leave out in shade: N side side 3. masks: H W of each."""
    previews = []
    for picture, mask in zip(pictures, masks, strict=True):
        shade = picture.image * (0.3 + 0.7 * mask[..., None])
        height, width = shade.shape[:2]
        scale = side / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = F.interpolate(
            shade.movedim(-1, 0)[None], size=size, mode="bilinear", antialias=True
        )[0]
        top, left = (side - size[0]) // 2, (side - size[1]) // 2
        previews.append(
            F.pad(small, (left, side - size[1] - left, top, side - size[0] - top)).movedim(0, -1)
        )
    return torch.stack(previews).clamp(0, 1)


class DifferentiableDecoder:
    """The VAE's decoder, made anew so that it passes gradients: the host's own holds inference
    tensors, and its layers handles of GPU memory, which a copy would give back a second time.

    network: the VAE as the host builds it.
    """

    network: Any

    def __init__(self, vae: Any, process_out: Callable[[Tensor], Tensor], device: torch.device):
        import comfy.sd

        self._dtype = torch.float32 if device.type == "cpu" else vae.vae_dtype
        weights = {name: tensor.detach().clone() for name, tensor in vae.get_sd().items()}
        network = comfy.sd.VAE(sd=weights).first_stage_model
        self.network = network.to(device, self._dtype).requires_grad_(False).eval()
        self._process_output, self._process_out = vae.process_output, process_out

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents of the model, B C h w -> images B 3 H W in 0..1."""
        out = self.network.decode(self._process_out(latents).to(self._dtype))
        if out.ndim == 5:  # B 3 1 H W, of a VAE for videos
            out = out[:, :, 0]
        # The host's scaling works in place.
        images: Tensor = self._process_output(out.float() * 1.0)
        return images.clamp(0, 1)
