"""MagiCapture's losses against a naive transcription: values, gradients, batches, and maps without
contrast."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from magicportrait.magic import capture_losses as losses
from magicportrait.tests.unit import naive_magicapture as naive


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masks(count: int = 3, side: int = 16) -> torch.Tensor:
    """Round faces of different size, soft at the edge."""
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    distance = ((x - side / 2) ** 2 + (y - side / 2) ** 2).sqrt()
    return torch.stack([(side / 5 + i - distance + 0.5).clamp(0, 1) for i in range(count)])


def attention(batch: int = 3, heads: int = 5, tokens: int = 2, side: int = 8) -> torch.Tensor:
    return (
        (random(batch, heads, side * side, 7, seed=4) * 2)
        .softmax(-1)[..., 1 : 1 + tokens]
        .transpose(2, 3)
        .unflatten(-1, (side, side))
    )


def same_value_and_gradient(ours, reference, at: torch.Tensor) -> None:
    a, b = (at.clone().requires_grad_() for _ in range(2))
    one, two = ours(a), reference(b)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
    assert two.abs() > 0
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, x)[0] for loss, x in ((one, a), (two, b))), rtol=1e-4, atol=1e-7
    )


def test_weights_are_the_official_mask():
    for mask, ours in zip(masks(), losses.loss_weights(masks(), (16, 16)), strict=True):
        torch.testing.assert_close(ours, naive.mask_weights(mask))


def test_masks_are_averaged_down_to_the_latent():
    mask = torch.zeros(1, 16, 16)
    mask[:, :3, :4] = 1
    weights = losses.loss_weights(mask, (4, 4))[0]
    torch.testing.assert_close(weights[0], torch.tensor([1, 0.01 / 0.76, 0.01 / 0.76, 0.01 / 0.76]))


@pytest.mark.parametrize("batch", [1, 3])
def test_reconstruction(batch):
    target, weights = random(batch, 4, 16, 16, seed=1), losses.loss_weights(masks(batch), (16, 16))

    def reference(x):
        return torch.stack(
            [naive.reconstruction(*sample) for sample in zip(x, target, weights)]
        ).mean()

    same_value_and_gradient(
        lambda x: losses.masked_reconstruction(x, target, weights).mean(),
        reference,
        random(batch, 4, 16, 16),
    )


def test_reconstruction_does_not_depend_on_the_size_of_the_face():
    error = torch.full((3, 4, 16, 16), 0.5)
    weights = (masks() > 0.5).float()
    torch.testing.assert_close(
        losses.masked_reconstruction(error, torch.zeros_like(error), weights),
        torch.full((3,), 0.25),
    )


@pytest.mark.parametrize("tokens", [1, 2])
def test_refocusing(tokens):
    weights = losses.loss_weights(masks(), (16, 16))
    composed = torch.full((3,), tokens == 2)
    targets = losses.refocusing_targets(weights, composed)
    present = torch.tensor([[True, tokens == 2]]).expand(3, -1)

    def ours(maps):
        return losses.refocusing(maps, targets, present).mean()

    def reference(maps):
        regions = [[1 - w, w] if tokens == 2 else [w] for w in weights]
        return torch.stack(
            [naive.refocusing(sample, targets) for sample, targets in zip(maps, regions)]
        ).mean()

    same_value_and_gradient(ours, reference, attention())


def test_refocusing_of_a_mixed_batch_is_the_mean_of_single_samples():
    weights, maps = losses.loss_weights(masks(), (16, 16)), attention()
    composed, present = (
        torch.tensor([False, True, False]),
        torch.tensor([[True, False], [True, True], [True, False]]),
    )
    targets = losses.refocusing_targets(weights, composed)
    together = losses.refocusing(maps, targets, present)
    alone = [
        losses.refocusing(maps[i : i + 1], targets[i : i + 1], present[i : i + 1])[0]
        for i in range(3)
    ]
    torch.testing.assert_close(together, torch.stack(alone))
    # A token that a sample does not have must not count, whatever its column holds.
    maps[0, :, 1] = torch.rand_like(maps[0, :, 1])
    torch.testing.assert_close(losses.refocusing(maps, targets, present), together)


def test_a_constant_map_gives_a_finite_loss_without_gradient():
    maps = torch.full((1, 4, 2, 8, 8), 1 / 77).requires_grad_()
    weights = losses.loss_weights(masks(1), (16, 16))
    loss = losses.refocusing(
        maps,
        losses.refocusing_targets(weights, torch.tensor([True])),
        torch.ones(1, 2, dtype=torch.bool),
    ).sum()
    assert loss.isfinite() and torch.equal(
        torch.autograd.grad(loss, maps)[0], torch.zeros_like(maps)
    )


def test_attention_that_has_vanished_gives_a_finite_gradient():
    maps = (random(1, 4, 2, 16, 16).abs() * 1e-43).requires_grad_()
    weights = losses.loss_weights(masks(1), (16, 16))
    loss = losses.refocusing(
        maps,
        losses.refocusing_targets(weights, torch.tensor([True])),
        torch.ones(1, 2, dtype=torch.bool),
    ).sum()
    assert loss.isfinite() and torch.autograd.grad(loss, maps)[0].isfinite().all()


def test_descending_the_refocusing_loss_empties_the_outside():
    logits = random(1, 4, 2, 8, 8).requires_grad_()
    weights = losses.loss_weights(masks(1), (16, 16))
    targets, present = (
        losses.refocusing_targets(weights, torch.tensor([True])),
        torch.ones(1, 2, dtype=torch.bool),
    )
    face = F.interpolate(targets[:, :1], size=(8, 8), mode="area")[0, 0] > 0.5

    def outside() -> float:
        probability = logits.detach().sigmoid()[0, :, 0]
        return (probability[:, ~face].mean() / probability[:, face].mean()).item()

    before = outside()
    for _ in range(60):
        (gradient,) = torch.autograd.grad(
            losses.refocusing(logits.sigmoid(), targets, present).sum(), logits
        )
        logits = (logits - 200 * gradient).detach().requires_grad_()
    assert outside() < 0.7 * before


@pytest.mark.parametrize("v_prediction", [False, True])
def test_the_clean_estimate_of_a_perfect_prediction_is_the_latent(v_prediction):
    latent, noise, alpha_bar = (
        random(3, 4, 8, 8),
        random(3, 4, 8, 8, seed=1),
        torch.tensor([0.9, 0.5, 0.1]),
    )
    signal, sigma = (
        alpha_bar.sqrt()[:, None, None, None],
        (1 - alpha_bar).sqrt()[:, None, None, None],
    )
    noisy = signal * latent + sigma * noise
    output = signal * noise - sigma * latent if v_prediction else noise
    torch.testing.assert_close(
        losses.clean_estimate(noisy, output, alpha_bar, v_prediction), latent, rtol=1e-4, atol=1e-4
    )
    if not v_prediction:
        torch.testing.assert_close(
            losses.clean_estimate(noisy, noise * 0.7, alpha_bar, False)[1],
            naive.tweedie(noisy[1], noise[1] * 0.7, 0.5),
        )


def test_face_crops_show_the_box():
    image = torch.zeros(1, 3, 64, 48)
    image[:, :, 20:36, 10:26] = 1
    mask = image[0, 0]
    box = losses.face_box(mask, 1.0)
    assert box.tolist() == [18, 28, 8]
    assert torch.equal(losses.face_crops(image, box[None], 8), torch.ones(1, 3, 8, 8))
    wider = losses.face_crops(image, losses.face_box(mask, 2.0)[None], 16)
    assert wider.mean().item() == pytest.approx(0.25, abs=0.02)


def test_what_becomes_much_smaller_is_smoothed_at_any_size():
    """A reference is cut out of the whole picture, a drawn face out of the decoded part around
    it."""
    picture = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[256.0, 256.0, 170.0]])
    whole = losses.face_crops(picture, box, 112)
    part = losses.face_crops(
        picture[..., 64:448, 64:448], box - torch.tensor([[64.0, 64.0, 0.0]]), 112
    )
    fits = losses.face_crops(picture[..., 1:511, 1:511], box - torch.tensor([[1.0, 1.0, 0.0]]), 112)
    for crop in (whole, part, fits):
        assert crop.std() < 0.1, "the mean of nine has a third of the noise, 0.29"
    ramp = torch.linspace(0, 1, 500).expand(1, 3, 500, 500)
    smooth = [losses.face_crops(ramp[..., :width], box, 112) for width in (500, 498)]
    torch.testing.assert_close(smooth[0], smooth[1], rtol=0, atol=1e-4)
    middle = ((torch.arange(112) + 0.5) / 112 * 340 + 86 - 0.5) / 499
    torch.testing.assert_close(smooth[0][0, 0, 50], middle, rtol=0, atol=2e-3)


def test_the_crop_passes_its_gradient_to_the_box_only():
    image = random(1, 3, 32, 32).requires_grad_()
    (gradient,) = torch.autograd.grad(
        losses.face_crops(image, torch.tensor([[16.0, 16.0, 4.0]]), 8).sum(), image
    )
    assert gradient[..., 12:20, 12:20].abs().min() > 0 and gradient[..., :10].abs().max() == 0


def test_identity():
    a = random(3, 8)
    torch.testing.assert_close(
        losses.identity(a, torch.cat([a[:1] * 2, -a[1:2], a[2:]])),
        torch.tensor([0.0, 2.0, 0.0]),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("rate", [1e-4, 5e-4, 1.0])
def test_pulled_rows(rate):
    rows = random(2, 8)
    torch.testing.assert_close(
        losses.pull_norms(rows, rate, 0.4), torch.stack([naive.pull(row, rate) for row in rows])
    )


def test_linear_decay_reaches_zero_only_after_the_last_step():
    rates = [losses.linear_decay(step, 4) for step in range(5)]
    assert rates == [1.0, 0.75, 0.5, 0.25, 0.0] and not math.isnan(losses.linear_decay(0, 1))
