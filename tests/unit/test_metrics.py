"""Metrics by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from magicportrait.magic.heat import heat_colours, over_picture, unit_range
from magicportrait.magic.metrics import linear_chain, mean_cosine, style_distance


def test_cosines_by_hand():
    features = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    references = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert mean_cosine(features, references).tolist() == pytest.approx([0.5, 0.5**0.5])
    assert mean_cosine(features, -features[:1]).tolist() == pytest.approx([-1.0, -(0.5**0.5)])


def test_a_linear_chain_is_applied_in_the_order_of_its_numbers():
    state = {
        "layers.10.weight": torch.tensor([[2.0]]),
        "layers.10.bias": torch.tensor([1.0]),
        "layers.2.weight": torch.tensor([[1.0, 3.0]]),
    }
    assert linear_chain(state, torch.tensor([[1.0, 2.0], [0.0, 0.0]])).tolist() == [15, 1]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"0.weight": torch.ones(1, 3)}, "takes 3 features, 2 came"),
        ({"0.weight": torch.ones(4, 2)}, "ends in 4 numbers, 1 was expected"),
    ],
)
def test_a_chain_that_does_not_fit_is_named(state, message):
    with pytest.raises(ValueError, match=message):
        linear_chain(state, torch.ones(1, 2))


def stripes(period: int, shift: int = 0, size: tuple[int, int] = (48, 48)) -> torch.Tensor:
    wave = ((torch.arange(size[1]) + shift) // (period // 2) % 2).float()
    return wave.expand(1, *size)[..., None].repeat(1, 1, 1, 3)


def test_style_distance_knows_how_and_not_where():
    drawn = stripes(8)
    assert style_distance(drawn, drawn).item() == 0
    moved, finer, plain = (
        style_distance(drawn, stripes(8, 8)),
        style_distance(drawn, stripes(4)),
        style_distance(drawn, drawn * 0 + 0.5),
    )
    assert moved < 0.03 < finer < plain <= 1
    assert style_distance(drawn, stripes(8, size=(96, 32))) < finer


def halve(picture: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; at an odd end, of those that are left. H W 3."""
    rows, columns = (range(0, side, 2) for side in picture.shape[:2])
    return np.array([[picture[y : y + 2, x : x + 2].mean((0, 1)) for x in columns] for y in rows])


def gram(picture: np.ndarray) -> np.ndarray:
    """The products of 13 filters (colours, edges in x and y, Laplacian, strength of the edges),
    averaged over all pixels, pixel by pixel."""
    height, width = picture.shape[:2]
    total = np.zeros((13, 13))
    for y in range(height):
        for x in range(width):
            left, right = picture[y, max(0, x - 1)], picture[y, min(width - 1, x + 1)]
            up, down = picture[max(0, y - 1), x], picture[min(height - 1, y + 1), x]
            across, along = (right - left) / 2, (down - up) / 2
            laplacian = left + right + up + down - 4 * picture[y, x]
            strength = np.sqrt((across**2 + along**2).sum())
            filters = np.concatenate([picture[y, x], across, along, laplacian, [strength]])
            total += np.outer(filters, filters)
    return total / (height * width)


def test_style_distance_is_that_of_grams_at_full_half_and_quarter_size():
    images, references = (
        torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(count))
        for count, size in ((2, (9, 14)), (3, (11, 6)))
    )
    expected = []
    for image in images.numpy():
        levels = []
        scaled, others = image, list(references.numpy())
        for _ in range(3):
            own, mean = gram(scaled), np.mean([gram(other) for other in others], 0)
            norms = np.linalg.norm(own) + np.linalg.norm(mean)
            levels.append(np.linalg.norm(own - mean) / norms)
            scaled, others = halve(scaled), [halve(other) for other in others]
        expected.append(np.mean(levels))
    assert style_distance(images, references).tolist() == pytest.approx(expected, rel=1e-4)


def test_style_distance_of_black_is_finite():
    black = torch.zeros(2, 1, 1, 3)
    assert style_distance(black, black).tolist() == [0, 0]
    assert style_distance(black, black + 1).tolist() == pytest.approx([1, 1])


def test_heat_rises_in_brightness():
    colours = heat_colours(torch.linspace(0, 1, 50))
    assert colours.shape == (50, 3) and colours.min() >= 0 and colours.max() <= 1
    assert (colours.sum(1).diff() > 0).all()


def test_heat_over_a_picture():
    heat = unit_range(torch.tensor([[[2.0, 4.0], [3.0, 2.0]]]))
    assert heat.tolist() == [[[0, 1], [0.5, 0]]]
    assert unit_range(torch.full((1, 2, 2), 7.0)).tolist() == [[[0, 0], [0, 0]]]
    picture = torch.rand(1, 2, 2, 3)
    assert torch.equal(over_picture(heat, picture, 0.0), picture)
    assert torch.allclose(
        over_picture(heat, picture, 1.0)[0, 0, 1], heat_colours(torch.tensor(1.0))
    )
