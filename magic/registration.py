"""An edited copy of a picture laid on the original again: edit models shift and scale what they do
not change by a few pixels, and tint it.

Coarse by gradient correlation over a range of scales (Argyriou and Vlachos, 2003), fine by
Gauss-Newton steps on the pixels (Lucas and Kanade, 1981), both with brightness left open.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask_shapes import feather, grow
from .pictures import resized_masks
from .portrait_crop import Crop, cut, resize

_COARSE_SIDE = 256
"""Pixels on the longer side at which shifts are looked for."""
_SCALES = tuple(1 + 0.005 * step for step in range(-12, 13))
_MOST_SHIFT = 0.08
"""Of a side."""
_ROUNDS = 12
_SMALL = 1e-8
_FLAT = 1e-4
"""Mean slope below which nothing is seen that could be laid on anything."""
_BETTER = 0.9
"""Of the mean square difference, from which a placement is believed."""
_KEPT = 0.7
"""Of the places, those that differ least, by which pictures are laid on each other and colours
matched."""
_LEAST_GAIN, _MOST_GAIN = 0.5, 2.0
_SOFT = 0.02
"""Width of the soft edge around what was changed, as a share of the shorter side."""


@dataclass(frozen=True)
class Placement:
    """Where in a copy a place of the original is: centre + (place - centre) * scale + (right,
    down), in pixels."""

    scale: float = 1.0
    right: float = 0.0
    down: float = 0.0


@dataclass(frozen=True)
class Fit:
    """How a patch is made to fit: whether it is laid on the picture; how far it takes its colours,
    0..1; the difference of a colour, 0..1, from which a place counts as changed, 0 for all."""

    aligns: bool = False
    colours: float = 0.0
    threshold: float = 0.0


def fitted(
    pictures: Tensor, patches: Tensor, crop: Crop, masks: Tensor | None, fit: Fit
) -> tuple[Tensor, Tensor | None]:
    """Patches fitted to what they were cut from, and the masks of what to paste of them.

    pictures: B H W 3, patches: B h w 3, masks: B m n, what may have changed, on the patches; each
    may be a single one for all. -> patches B h w 3, masks as they came, or B h w with a threshold.
    ValueError when there are several of two of them, and not equally many.
    """
    counts = [len(x) for x in (pictures, patches, masks) if x is not None]
    batch = max(counts)
    if not set(counts) <= {1, batch}:
        raise ValueError(
            f"{counts[0]} pictures, {counts[1]} patches and {counts[2] if len(counts) > 2 else 0}"
            " masks: expected one or equally many of each"
        )
    size = (patches.shape[1], patches.shape[2])
    region = torch.ones(1, *size)
    if masks is not None:
        region = resized_masks(masks.cpu(), size)
    weights = torch.ones_like(region) if masks is None else 1 - region.clamp(0, 1)
    parts = resize(cut(pictures.movedim(-1, 1), crop.box).movedim(1, -1), size).movedim(-1, 1)
    fits, changes = [], []
    for i in range(batch):
        patch, part, weight = (
            x[i if len(x) > 1 else 0] for x in (patches.movedim(-1, 1), parts, weights)
        )
        if fit.aligns:
            patch = placed(patch, placement_of(patch, part, weight))
        if fit.colours:
            patch = colour_matched(patch, part, weight, fit.colours)
        fits.append(patch)
        if fit.threshold:
            changed = changed_places(patch, part, fit.threshold)
            changes.append(changed * region[i if len(region) > 1 else 0])
    return torch.stack(fits).movedim(1, -1), torch.stack(changes) if changes else masks


def placement_of(copy: Tensor, original: Tensor, weight: Tensor) -> Placement:
    """How a copy lies on the original. copy, original: 3 H W in 0..1; weight: H W in 0..1, which
    places count. The identity where nothing fits better than that."""
    gray, target = copy.float().mean(0), original.float().mean(0)
    weight = weight.float()
    if min(float((_gradient(x).abs() * weight).mean()) for x in (gray, target)) < _FLAT:
        return Placement()
    place = _refined(gray, target, weight, _coarse(gray, target, weight))
    before = _misfit(gray, target, weight, Placement())
    return place if _misfit(gray, target, weight, place) < _BETTER * before else Placement()


def placed(picture: Tensor, placement: Placement) -> Tensor:
    """A copy laid on its original: C H W -> C H W. Beyond its border the border goes on."""
    if placement == Placement():
        return picture
    height, width = picture.shape[-2:]
    grid = _grid(height, width, placement)[None]
    out = F.grid_sample(
        picture[None].float(), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return out[0].clamp(0, 1).to(picture)


def colour_matched(copy: Tensor, original: Tensor, weight: Tensor, amount: float) -> Tensor:
    """A copy with the original's brightness and contrast in each channel, by the places that are
    alike: those that differ most are left out. 3 H W each, weight: H W; amount: 0 (none) to 1."""
    out = []
    for own, target in zip(copy.float(), original.float(), strict=True):
        gain, offset = 1.0, 0.0
        share = weight.float()
        for _ in range(4):
            gain, offset = _line(own, target, share)
            share = _alike(own * gain + offset, target, weight)
        out.append(torch.lerp(own, own * gain + offset, amount))
    return torch.stack(out).clamp(0, 1).to(copy)


def changed_places(copy: Tensor, original: Tensor, threshold: float) -> Tensor:
    """Where a copy shows something else: H W, 1 there, falling softly to 0 outside. 3 H W each;
    threshold: difference of a colour, in 0..1, from which a place counts; single pixels do not."""
    difference = (copy.float() - original.float()).abs().amax(0)[None]
    pixels = max(1, round(_SOFT * min(difference.shape[-2:])))
    inside = (feather(difference, pixels) > threshold).float()
    return feather(grow(inside, 2 * pixels), pixels)[0]


def _offsets(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of a picture's places from its centre, H W each."""
    rows = torch.arange(height) + 0.5 - height / 2
    columns = torch.arange(width) + 0.5 - width / 2
    return rows[:, None].expand(height, width), columns[None].expand(height, width)


def _grid(height: int, width: int, place: Placement) -> Tensor:
    """Where in the copy each place of the original is: H W 2, x and y, -1..1 inside of it."""
    rows, columns = _offsets(height, width)
    x = (columns * place.scale + place.right) * 2 / width
    y = (rows * place.scale + place.down) * 2 / height
    return torch.stack((x, y), -1)


def _placed_weight(weight: Tensor, place: Placement) -> Tensor:
    """A weight without the places that the copy does not show: H W."""
    height, width = weight.shape
    inside = _grid(height, width, place).abs() <= 1 - 2 / weight.new_tensor([width, height])
    return weight * inside.all(-1)


def _gradient(gray: Tensor) -> Tensor:
    """H W -> H W complex: to the right, and i times downwards."""
    padded = F.pad(gray[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    right = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    down = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    return torch.complex(right, down)


def _coarse(gray: Tensor, target: Tensor, weight: Tensor) -> Placement:
    height, width = gray.shape
    factor = min(1.0, _COARSE_SIDE / max(height, width))
    size = [max(8, round(side * factor)) for side in (height, width)]
    small, aim, share = (
        F.interpolate(x[None, None], size=size, mode="area")[0, 0] for x in (gray, target, weight)
    )
    share = share * torch.hann_window(size[0])[:, None] * torch.hann_window(size[1])[None]
    aim_spectrum = torch.fft.fft2(_gradient(aim) * share)
    reach = [max(1, round(_MOST_SHIFT * side)) for side in size]
    best, place = 0.0, Placement()
    for scale in _SCALES:
        field = _gradient(placed(small[None], Placement(scale))[0]) * share
        spectrum = torch.fft.fft2(field)
        norm = float(spectrum.abs().square().sum() * aim_spectrum.abs().square().sum()) ** 0.5
        likeness = torch.fft.ifft2(spectrum * aim_spectrum.conj()).real
        likeness = likeness.roll(reach, (0, 1))[: 2 * reach[0] + 1, : 2 * reach[1] + 1]
        score = float(likeness.max()) * likeness.new_tensor(size).prod().item() / (norm + _SMALL)
        # The scale nearest to 1 of those that fit equally well.
        if score > best + 1e-6 or (score > best - 1e-6 and abs(scale - 1) < abs(place.scale - 1)):
            row, column = divmod(int(likeness.argmax()), likeness.shape[1])
            best = score
            place = Placement(
                scale,
                (column - reach[1]) * scale * width / size[1],
                (row - reach[0]) * scale * height / size[0],
            )
    return place


def _refined(gray: Tensor, target: Tensor, weight: Tensor, first: Placement) -> Placement:
    """Steps on scale, shift, gain and offset, each solved where the last one led."""
    rows, columns = _offsets(*gray.shape)
    place = first
    for _ in range(_ROUNDS):
        own, weight_there = placed(gray[None], place)[0], _placed_weight(weight, place)
        gain, offset = _line(own, target, weight_there)
        # What was changed outside of the mask does not lead astray.
        root = _alike(own * gain + offset, target, weight_there).sqrt()
        slope = _gradient(own) / place.scale
        towards = slope.real * columns + slope.imag * rows
        parts = (towards, slope.real, slope.imag, own, torch.ones_like(own))
        design = torch.stack([(part * root).flatten() for part in parts], 1).double()
        normal = design.T @ design
        aim = design.T @ (target * root).flatten().double()
        normal += torch.eye(5, dtype=torch.float64) * (_SMALL * float(normal.diagonal().max()))
        step = torch.linalg.solve(normal, aim)
        gain = float(step[3])
        if not bool(step.isfinite().all()) or gain < _LEAST_GAIN:
            return first
        scale, right, down = (float(value) / gain for value in step[:3])
        place = Placement(place.scale + scale, place.right + right, place.down + down)
        if not _is_near(place, gray):
            return first
    return place


def _is_near(place: Placement, gray: Tensor) -> bool:
    height, width = gray.shape
    return (
        abs(place.scale - 1) <= 1.5 * (_SCALES[-1] - 1)
        and abs(place.right) <= 1.5 * _MOST_SHIFT * width
        and abs(place.down) <= 1.5 * _MOST_SHIFT * height
    )


def _misfit(gray: Tensor, target: Tensor, weight: Tensor, place: Placement) -> float:
    """The weighted mean square difference, at the gain and offset that suit best."""
    weight, own = _placed_weight(weight, place), placed(gray[None], place)[0]
    gain, offset = _line(own, target, weight)
    total = float(weight.sum()) + _SMALL
    return float((weight * (own * gain + offset - target).square()).sum()) / total


def _alike(own: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """A weight without the places that differ most: H W."""
    difference = (own - target).abs()
    counted = difference[weight > 0]
    if not len(counted):
        return weight
    limit = torch.quantile(counted[:: max(1, len(counted) // 100_000)], _KEPT)
    return weight * (difference <= limit)


def _line(own: Tensor, target: Tensor, weight: Tensor) -> tuple[float, float]:
    """Gain and offset that bring `own` nearest to `target`."""
    total = weight.sum() + _SMALL
    mean, aim = (weight * own).sum() / total, (weight * target).sum() / total
    spread = (weight * (own - mean).square()).sum()
    joint = (weight * (own - mean) * (target - aim)).sum()
    gain = 1.0
    if float(spread) > _SMALL * float(total):
        gain = min(max(float(joint / spread), _LEAST_GAIN), _MOST_GAIN)
    return gain, float(aim) - gain * float(mean)
