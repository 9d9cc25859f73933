"""Rules of other papers for a training, which MagiCapture does not have: bench.magicapture_effect
compares with them.

T-LoRA (arXiv 2507.05964): the noisier the sample, the fewer ranks of the LoRA act. Here without its
orthogonal start, and from half of the ranks on, as the paper does.
RegionRoute (arXiv 2602.19254): in place of refocusing a divergence of where a word is looked at
from its region, and a cross-entropy that asks for all of the region. Both are weighed alike, the
better of two weights on a tuning pair: ten times as much spoils the pictures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

from . import in_process  # noqa: F401 (before what follows)

# ruff: isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicportrait.host.training.flow import join_maps
from magicportrait.host.training.lora import LoraLinear
from magicportrait.host.training.preview import sample_picture
from magicportrait.host.training.run import CaptureTraining
from magicportrait.magic import capture_losses

_LEAST = 1e-6
FOCUS, COVER = 0.1, 0.1
"""Weights of RegionRoute's two terms, times the weight of refocusing."""


class FallingRank:
    """A Denoiser of flow matching whose LoRA acts with few ranks at much noise."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser
        self._rank = 0
        for adapter in denoiser.adapters.values():
            assert isinstance(adapter, LoraLinear)
            # In the place of the class's method.
            vars(adapter)["change"] = self._limited(adapter)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def _limited(self, adapter: LoraLinear) -> Callable[[nn.Module, Tensor], Tensor]:
        def change(layer: nn.Module, x: Tensor) -> Tensor:
            low = F.linear(x, adapter.down[: self._rank])
            return F.linear(low, adapter.up[:, : self._rank])

        return change

    def predict(
        self, noisy: Tensor, times: Tensor, condition: Any, watched: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """One sample after the other, each with its own ranks."""
        outputs, maps = [], []
        for row, sigma in enumerate(times.tolist()):
            self._rank = rank_at(sigma, _rank_of(self._denoiser))
            output, word_maps = self._denoiser.predict(
                noisy[row : row + 1], times[row : row + 1], condition.of_rows([row]), watched
            )
            outputs.append(output)
            maps.append(word_maps)
        return torch.cat(outputs), join_maps(maps)


def _rank_of(denoiser: Any) -> int:
    return int(next(iter(denoiser.adapters.values())).down.shape[0])


def rank_at(sigma: float, rank: int) -> int:
    """Of a LoRA of `rank`: half of it at sigma 1, all of it at 0."""
    least = rank // 2
    return least + int((rank - least) * (1 - sigma) + 0.5)


def let_rank_fall(training: CaptureTraining) -> None:
    """T-LoRA's rule for a training that has not begun its second phase."""
    networks = training.networks
    training.networks = replace(networks, denoiser=FallingRank(networks.denoiser))


def sample_as_it_stands(
    training: CaptureTraining, prompt: str, seeds: Sequence[int], steps: int
) -> Tensor:
    """B H W 3, by the training's own networks: their rule acts, which no LoRA file can hold."""
    size = training.data.subject_pictures[0].size
    with torch.no_grad():
        return torch.cat(
            [
                sample_picture(
                    training.networks, training._vae, prompt, size, seed, steps, (1.0, 1.0)
                )
                for seed in seeds
            ]
        )


def focus_and_cover(maps: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """RegionRoute's two terms in the place of `capture_losses.refocusing`: same shapes, B."""
    size = targets.shape[-2:]
    attention = maps.float().mean(1)  # B K H W
    attention = F.interpolate(attention, size=size, mode="bilinear", align_corners=False)
    low, high = (part((-2, -1), keepdim=True) for part in (attention.amin, attention.amax))
    shares = attention / attention.sum((-2, -1), keepdim=True).clamp(min=_LEAST)
    goal = targets / targets.sum((-2, -1), keepdim=True)
    focus = (goal * ((goal + _LEAST).log() - (shares + _LEAST).log())).sum((-2, -1))
    height = ((attention - low) / (high - low).clamp(min=_LEAST)).clamp(_LEAST, 1 - _LEAST)
    cover = F.binary_cross_entropy(height, targets.clamp(0, 1), reduction="none").mean((-2, -1))
    error = FOCUS * focus + COVER * cover  # B K
    return (error * present).sum(1) / present.sum(1).clamp(min=1)


@contextlib.contextmanager
def region_route() -> Iterator[None]:
    """Trainings have RegionRoute's terms for refocusing while this is open."""
    with mock.patch.object(capture_losses, "refocusing", focus_and_cover):
        yield
