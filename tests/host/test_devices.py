"""The nodes on a pretended GPU: on the CPU alone nobody sees a tensor that is on the wrong device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from magicportrait.tests.host import models, sampling
from magicportrait.tests.host.inverting import invert, latent, sample, sample_again
from magicportrait.tests.host.pretend_gpu import CPU, PRETEND, pretend_gpu
from magicportrait.tests.host.sampling import Sampling, apply, concepts, encode


@cache
def parts(shape: str = "sd15", dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
    model = models.random_model(shape, dtype)
    model.load_device = PRETEND
    return model, models.random_clip(), models.random_vae()


@pytest.fixture(autouse=True)
def on_a_pretended_gpu(monkeypatch) -> Iterator[None]:
    with pretend_gpu():
        # Models of other tests are on the CPU.
        monkeypatch.setattr(sampling, "parts", parts)
        yield


def test_tensors_of_two_devices_do_not_mix():
    there, here = torch.randn(3, 4, device=PRETEND), torch.randn(3, 4)
    assert there.device == PRETEND and here.device == CPU and (there * 2).device == PRETEND and there[0, 1:].device == PRETEND
    assert torch.equal((there + here.to(PRETEND)).cpu(), there.cpu() + here)
    for mix in (
        lambda: there + here,
        lambda: here * there[0, 0],
        lambda: here.add_(there),
        lambda: torch.zeros(()).add_(there[0, 0]),
        lambda: torch.cat([there, here]),
        lambda: torch.stack([there[0, 0], torch.zeros(())]),
        lambda: torch.nn.functional.linear(there, here),
        lambda: torch.where(here > 0, there, 0),
        lambda: there.gather(0, torch.zeros(1, 4, dtype=torch.long)),
        lambda: torch.isin(there, here),
        lambda: torch.randn(2, device=PRETEND, generator=torch.Generator()),
        lambda: here[torch.tensor([0], device=PRETEND)],
        lambda: there.index_put_((torch.tensor([0]),), here[0]),
    ):
        with pytest.raises(RuntimeError, match="device"):
            mix()
    for conversion in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="numpy"):
            conversion()


def test_what_cuda_allows():
    there, here = torch.zeros(3, 4, device=PRETEND), torch.ones(3, 4)
    assert (there + here[0, 0]).device == PRETEND and (here[0, 0] - there).device == PRETEND
    assert there[torch.tensor([0, 2])].device == PRETEND and there[here[:, 0] > 0].device == PRETEND
    there[torch.tensor([0, 2])] = here.sum()
    there[1:] = here[1:]
    assert here.copy_(there) is here and here.device == CPU
    assert torch.zeros_like(here, device=PRETEND).device == PRETEND and torch.empty_like(there, device="cpu").device == CPU
    assert there.new_zeros(2).device == PRETEND and torch.as_tensor([1.0], device=PRETEND).device == PRETEND
    assert there.to(PRETEND) is there and there.to(torch.float64).device == PRETEND and there.to(here).device == CPU
    assert np.asarray(there.cpu()).sum() == there.sum().item()


@torch.inference_mode(False)
def test_gradients_come_back_to_where_the_weights_are():
    layer = torch.nn.Linear(3, 2).to(PRETEND)
    given = torch.randn(4, 3, requires_grad=True)
    layer(given.to(PRETEND)).cpu().sum().backward()
    assert layer.weight.grad.device == PRETEND and given.grad.device == CPU
    assert all(tensor.device == PRETEND for tensor in layer.state_dict().values())


@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_the_host_alone(shape):
    assert Sampling().run(parts(shape)[0], encode("a man")).device == CPU
