from __future__ import annotations

import pytest
import torch

from magicportrait.magic.registration import (
    Placement,
    changed_places,
    colour_matched,
    placed,
    placement_of,
)

SIZE = (120, 160)
ALL = torch.ones(SIZE)


def scene(seed: int = 0) -> torch.Tensor:
    """Soft shapes of all sizes, 3 H W."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.zeros(1, 3, *SIZE)
    for cells in (6, 12, 24):
        noise = torch.rand(1, 3, cells, cells, generator=generator)
        out += torch.nn.functional.interpolate(noise, size=SIZE, mode="bicubic") / 3
    return out[0].clamp(0, 1)


@pytest.mark.parametrize(
    "moved",
    [Placement(1.0, 3.4, -2.3), Placement(1.03, 0.0, 0.0), Placement(0.975, -4.2, 1.7)],
)
def test_a_copy_that_was_moved_and_tinted_is_laid_back(moved: Placement) -> None:
    original = scene()
    # The copy is where the original is once it is laid on it.
    inverse = Placement(1 / moved.scale, -moved.right / moved.scale, -moved.down / moved.scale)
    copy = placed(original, inverse) * 0.9 + 0.04
    # Something is new in it, which does not count.
    copy[:, 40:80, 60:110] = scene(1)[:, 40:80, 60:110]
    # More is new than the mask says.
    weight = ALL.clone()
    weight[45:75, 65:105] = 0
    found = placement_of(copy, original, weight)
    assert found.scale == pytest.approx(moved.scale, abs=1e-3)
    assert found.right == pytest.approx(moved.right, abs=0.1)
    assert found.down == pytest.approx(moved.down, abs=0.1)


def test_what_lies_where_it_was_stays_and_what_does_not_fit_is_left_alone() -> None:
    original = scene()
    assert placed(original, Placement()) is original
    found = placement_of(original, original, ALL)
    assert found.scale == pytest.approx(1, abs=1e-4) and abs(found.right) + abs(found.down) < 0.01
    flat = torch.full_like(original, 0.5)
    for copy, target in ((flat, original), (original, flat), (flat, flat)):
        assert placement_of(copy, target, ALL) == Placement()
    assert placement_of(original, scene(1), torch.zeros(SIZE)) == Placement()


def test_a_tint_is_taken_away_by_what_is_alike() -> None:
    original = scene()
    copy = original * torch.tensor([0.8, 0.9, 1.0])[:, None, None] + 0.05
    copy[:, 30:60, 30:60] = 1
    back = colour_matched(copy, original, ALL, 1.0)
    outside = torch.ones(SIZE, dtype=torch.bool)
    outside[30:60, 30:60] = False
    assert float((back - original)[:, outside].abs().max()) < 0.01
    half = colour_matched(copy, original, ALL, 0.5)
    torch.testing.assert_close(half[:, outside], (copy + back)[:, outside] / 2)
    assert torch.equal(colour_matched(copy, original, ALL, 0.0), copy)
    flat = torch.full_like(original, 0.3)
    assert float((colour_matched(flat, flat + 0.2, ALL, 1.0) - flat - 0.2).abs().max()) < 1e-5


def test_what_changed_is_found_and_noise_is_not() -> None:
    original = scene()
    noise = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(5)) - 0.5
    copy = (original + 0.04 * noise).clamp(0, 1)
    assert not changed_places(copy, original, 0.1).any()
    copy[:, 40:60, 50:80] = 1 - original[:, 40:60, 50:80].round()
    found = changed_places(copy, original, 0.1)
    assert float(found[42:58, 52:78].min()) > 0.99
    assert not found[:20].any() and not found[:, :30].any() and not found[90:].any()
