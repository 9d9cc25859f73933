"""MagiCapture's training of the host's other adapters, and the average of what is learned."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from magicportrait.host.training import run as capture_run
from magicportrait.host.training.checkpoint import CheckpointFile
from magicportrait.host.training.lora import ADAPTERS, as_lora_model, check_adapter
from magicportrait.host.training.memory import training_mode
from magicportrait.host.training.networks import build_denoiser
from magicportrait.host.training.run import CaptureTraining, Trained
from magicportrait.host.training.settings import CaptureSettings
from magicportrait.tests.host import test_flow_training as flows
from magicportrait.tests.host import test_magicapture as unets
from magicportrait.tests.host.test_magicapture import ignore

OTHERS = ADAPTERS[1:]


def denoiser_of(model: Any, kind: str, seed: int = 0) -> Any:
    settings = CaptureSettings(rank=2, adapter=kind)
    return build_denoiser(model, settings, torch.Generator().manual_seed(seed))


@cache
def few_steps() -> CaptureTraining:
    """For its text, whose text encoder is random and the same for all."""
    return flows.training("zimage", versions=1)


def prediction(denoiser: Any) -> Tensor:
    """What a denoiser gives for a latent."""
    stream = torch.Generator().manual_seed(2)
    size = (8, 8)
    latent = torch.randn(1, denoiser.latent_channels, *size, generator=stream)
    prompt = few_steps().networks.text.prompt("a photo of a woman")
    condition = denoiser.condition([prompt], [prompt], size)
    times = denoiser.draw_early_times(1, 500, stream)
    output: Tensor = denoiser.predict(latent, times, condition)[0]
    return output


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_trained_is_what_the_host_s_loader_makes_of_it(kind):
    import comfy.sd

    model, clip, _ = flows.parts("zimage")
    with training_mode():
        own = denoiser_of(model, kind)
        for adapter in own.adapters.values():
            adapter.strength = 0.0
        plain = prediction(own).detach()
        for adapter in own.adapters.values():
            adapter.strength = 1.0
        torch.testing.assert_close(prediction(own), plain, rtol=1e-4, atol=1e-5)
        learned = [each for adapter in own.adapters.values() for each in adapter.learned]
        # Twice: of most adapters some parts learn only when others are no longer zero.
        for _ in range(2):
            loss = (prediction(own) - plain - 1).square().mean()
            gradients = torch.autograd.grad(loss, learned)
            with torch.no_grad():
                for parameter, gradient in zip(learned, gradients, strict=True):
                    parameter += 0.02 * gradient / (gradient.std(correction=0) + 1e-8)
        assert all(gradient.abs().max() > 0 for gradient in gradients)
        ours = prediction(own).detach()
    lora = as_lora_model(own.adapters)
    patched, _ = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    assert len(patched.patches) == len(own.adapters) > 0
    with training_mode(), torch.no_grad():
        theirs = prediction(denoiser_of(patched, "LoRA"))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * plain.std().item())
    assert (ours - plain).std() > 20 * (ours - theirs).std(), "it does nothing"


def test_the_host_s_loader_knows_all_that_is_trained_of_a_unet():
    import comfy.sd

    model, clip, _ = unets.models_of("sd15")
    adapters = denoiser_of(model, "LoKr").adapters
    lora = as_lora_model(adapters)
    patched, _ = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    assert len(patched.patches) == len(adapters) > 0


def test_what_an_adapter_begins_with_comes_from_the_training_s_seed():
    def first_weights(seed: int) -> dict[str, Tensor]:
        return as_lora_model(denoiser_of(flows.parts("zimage")[0], "LoHa", seed).adapters)

    torch.manual_seed(1)
    stream = torch.random.get_rng_state()
    one = first_weights(0)
    assert torch.equal(torch.random.get_rng_state(), stream)
    torch.manual_seed(2)
    assert not flows.changes(one, first_weights(0))
    assert any(name.endswith("hada_w1_a") for name in flows.changes(one, first_weights(1)))


@pytest.mark.parametrize("kind", OTHERS)
def test_a_host_without_an_adapter_says_so(kind, monkeypatch):
    import comfy.weight_adapter

    monkeypatch.setattr(comfy.weight_adapter, "adapter_maps", {})
    monkeypatch.setattr(capture_run, "build_networks", lambda *_: pytest.fail("too late"))
    with pytest.raises(ValueError, match=f"no {kind} that can be trained: update it, or set"):
        flows.training("zimage", adapter=kind)
    check_adapter("LoRA")


def test_a_training_of_another_adapter_goes_through():
    run = flows.training("zimage", lora_steps=2, versions=1, adapter="LoKr")
    before = flows.lora_of(run)
    trained = run.run(ignore)
    learned = {name for name in before if not name.endswith(".alpha")}
    assert flows.changes(before, trained.lora) == learned
    assert "LoKr in place of LoRA" in trained.report


# ---- the average ----


@cache
def train_with_average(ema: float) -> tuple[Trained, list[dict[str, Tensor]]]:
    """A training with an average, and what it had learned after each step, the start first."""
    run = flows.training("zimage", lora_steps=3, versions=1, ema=ema, seed=3)
    states = [flows.lora_of(run)]
    return run.run(lambda *_: states.append(flows.lora_of(run))), states


def test_the_average_is_one_of_the_steps_and_changes_none_of_them():
    plain, steps = train_with_average(0.0)
    trained, same = train_with_average(0.7)
    assert trained.history == plain.history
    assert all(not flows.changes(one, other) for one, other in zip(steps, same, strict=True))
    expected = {name: tensor.double() for name, tensor in steps[0].items()}
    for number, state in enumerate(steps[1:]):
        decay = min(0.7, (1 + number) / (10 + number))
        for name, tensor in state.items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    for name, tensor in trained.lora.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7)
    assert flows.changes(plain.lora, trained.lora)
    assert "average" in trained.report and "average" not in plain.report


def test_a_cancelled_training_goes_on_with_its_average(tmp_path):
    import comfy.model_management as management

    def cancel(done: int, loss: float) -> None:
        if done == 2:
            raise management.InterruptProcessingException()

    file = CheckpointFile(tmp_path / "state.pt", 100)
    settings: dict[str, Any] = {"lora_steps": 3, "versions": 1, "ema": 0.7, "seed": 3}
    with pytest.raises(management.InterruptProcessingException):
        flows.training("zimage", **settings).run(cancel, file)
    resumed = flows.training("zimage", **settings).run(ignore, file)
    whole, _ = train_with_average(0.7)
    assert resumed.history == whole.history and not flows.changes(whole.lora, resumed.lora)
