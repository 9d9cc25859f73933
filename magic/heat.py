"""Heat maps as colours."""

from __future__ import annotations

import torch
from torch import Tensor

# Dark blue through purple and orange to pale yellow: brightness rises all the way, so it reads in
# gray and for the colour-blind too.
_STOPS = torch.tensor(
    [
        [0.02, 0.02, 0.14],
        [0.25, 0.06, 0.42],
        [0.55, 0.14, 0.42],
        [0.84, 0.28, 0.25],
        [0.98, 0.57, 0.10],
        [0.98, 0.98, 0.68],
    ]
)


def heat_colours(heat: Tensor) -> Tensor:
    """Heat in 0..1 as colours: ... -> ... 3 in 0..1."""
    position = heat.float().clamp(0, 1) * (len(_STOPS) - 1)
    lower = position.floor().long().clamp(max=len(_STOPS) - 2)
    stops = _STOPS.to(heat.device)
    return torch.lerp(stops[lower], stops[lower + 1], (position - lower)[..., None])


def unit_range(heat: Tensor) -> Tensor:
    """Each map stretched to 0..1: ... H W -> ... H W. A constant map becomes 0."""
    low, high = heat.amin((-2, -1), keepdim=True), heat.amax((-2, -1), keepdim=True)
    return (heat - low) / (high - low).clamp(min=1e-12)


def over_picture(heat: Tensor, picture: Tensor, strength: float) -> Tensor:
    """Heat (B H W in 0..1) in colour over pictures (B H W 3): the hotter, the less of the picture
    is seen. strength: 0..1."""
    return torch.lerp(picture.float(), heat_colours(heat), strength * _opacity(heat))


def as_overlay(heat: Tensor, strength: float) -> Tensor:
    """What `over_picture` lays over a picture, by itself: heat (H W in 0..1) as colours with
    opacity, H W 4 in 0..1."""
    return torch.cat([heat_colours(heat), strength * _opacity(heat)], -1)


def _opacity(heat: Tensor) -> Tensor:  # ... 1
    return (0.35 + 0.65 * heat)[..., None]
