"""The detail pass: parts of pictures drawn anew, one after the other, each by its own model and
text at the size that the model likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...magic.detail_areas import soft_area
from ...magic.portrait_crop import Crop, cut, paste, replaced, resize
from ..inversion.inputs import decoded_pictures, encoded_picture


@dataclass(frozen=True, eq=False)
class Detail:
    """One area of one picture.

    picture: its index in the batch; number: the area's index in its picture; mask: H W in 0..1,
    the area in the picture; crop: what is cut out; size: rows and columns that the cut-out is
    drawn at; model: the host's MODEL, patched for this text; positive: the text as CONDITIONING.
    """

    picture: int
    number: int
    mask: Tensor
    crop: Crop
    size: tuple[int, int]
    model: Any
    positive: list[Any]


@dataclass(frozen=True)
class DetailSampling:
    """How an area is drawn: as on the host's KSampler.

    seed: of a picture's first area, the next has the next seed, so that a picture of a batch is
    what it would be alone; is_kept_around: whether what surrounds the area in the cut-out stays as
    it is while sampling; feather: width of the soft edge, as a share of the cut-out's shorter side.
    """

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float
    is_kept_around: bool
    feather: float


def draw_details(
    pictures: Tensor,
    details: Sequence[Detail],
    sampling: DetailSampling,
    negative: list[Any],
    vae: Any,
) -> tuple[Tensor, Tensor]:
    """Draws every area, later ones over earlier ones.

    pictures: B H W 3 in 0..1. -> B H W 3, which is bit for bit as it was where nothing was drawn,
    and B H W, how much of each place was: 0..1.
    """
    import comfy.model_management as management

    out = pictures.clone()
    shares = torch.zeros(pictures.shape[:3])
    progress = _Progress(len(details) * sampling.steps)
    for done, detail in enumerate(details):
        management.throw_exception_if_processing_interrupted()
        picture = out[detail.picture, None]
        share = soft_area(detail.mask, detail.crop, sampling.feather)
        callback = progress.of(detail.model, done * sampling.steps)
        patch = _draw(picture, share, detail, sampling, negative, vae, callback)
        out[detail.picture] = paste(picture, patch.to(picture), detail.crop, 0.0, share)[0]
        own, box = shares[detail.picture, None, None], detail.crop.box
        most = torch.maximum(cut(own, box), share[None])
        shares[detail.picture] = replaced(own, most, box)[0, 0]
    return out, shares


def _draw(
    picture: Tensor,
    share: Tensor,
    detail: Detail,
    sampling: DetailSampling,
    negative: list[Any],
    vae: Any,
    callback: Any,
) -> Tensor:  # 1 H W 3 -> 1 h w 3
    import comfy.sample

    part = cut(picture.movedim(-1, 1), detail.crop.box).movedim(1, -1)
    latent = encoded_picture(detail.model, resize(part, detail.size), vae, "the cut-out")
    seed = (sampling.seed + detail.number) % 2**64
    samples = comfy.sample.sample(
        detail.model,
        comfy.sample.prepare_noise(latent, seed),
        sampling.steps,
        sampling.cfg,
        sampling.sampler,
        sampling.scheduler,
        detail.positive,
        negative,
        latent,
        denoise=sampling.denoise,
        noise_mask=(share > 0).float()[:, None] if sampling.is_kept_around else None,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
    return decoded_pictures(vae, samples)[..., :3].clamp(0, 1).cpu()


class _Progress:
    """One bar over all areas, with the host's previews."""

    def __init__(self, steps: int) -> None:
        import comfy.utils

        self._steps = steps
        self._bar = comfy.utils.ProgressBar(steps)

    def of(self, model: Any, first: int) -> Any:
        """What a sampler calls after each step. first: steps that were done before."""
        import latent_preview

        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

        def show(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
            self._bar.update_absolute(first + step + 1, self._steps, preview)

        return show
