"""Correspondence against one softmax written out."""

from __future__ import annotations

import pytest
import torch

from magicportrait.magic.correspondence import (
    as_coarse_maps,
    as_picture,
    cells_at_centres,
    cells_at_points,
    cells_in_mask,
    coarse_size,
    quantised,
    query_shares,
    reference_shares,
)
from magicportrait.magic.reference_attention import ReferenceTokens


def test_shares_are_those_of_one_softmax():
    generator = torch.Generator().manual_seed(0)
    heads, channels = 3, 12
    q, k = (
        torch.randn(300, channels, generator=generator),
        torch.randn(9, channels, generator=generator),
    )
    references = [
        ReferenceTokens(
            torch.randn(n, channels, generator=generator),
            torch.zeros(n, channels),
            torch.randn(n, generator=generator),
        )
        for n in (4, 6)
    ]
    keys = torch.cat([k, *(reference.k for reference in references)])
    bias = torch.cat([torch.zeros(9), *(reference.bias for reference in references)])
    expected = torch.zeros(19)
    for head in range(heads):
        part = slice(4 * head, 4 * head + 4)
        expected += ((q[:, part] @ keys[:, part].T) / 2 + bias).softmax(-1).sum(0) / heads

    shares = reference_shares(q, k, references, heads)

    assert [len(share) for share in shares] == [4, 6]
    assert torch.allclose(torch.cat(shares), expected[9:], rtol=1e-4)


def test_cells_of_points():
    assert cells_at_points(
        [(0, 0), (127.9, 127.9), (64, 0), (65, 3)], (128, 128), (4, 4)
    ).tolist() == [0, 2, 15]
    assert cells_at_points([(100, 30)], (64, 128), (3, 5)).tolist() == [1 * 5 + 3]


def test_cells_of_a_mask():
    mask = torch.zeros(8, 8)
    mask[:4, 4:] = 1
    assert cells_in_mask(mask, (4, 4)).tolist() == [2, 3, 6, 7]
    dot = torch.zeros(8, 8)
    dot[7, 1] = 1
    assert cells_in_mask(dot, (4, 4)).tolist() == [12], "a region smaller than a cell still has one"


def test_tokens_go_back_to_their_places():
    picture = as_picture(torch.tensor([1.0, 2.0]), torch.tensor([1, 4]), (2, 3), (2, 3))
    assert picture.tolist() == [[0, 1, 0], [0, 2, 0]]
    larger = as_picture(torch.tensor([1.0, 2.0]), torch.tensor([1, 4]), (2, 3), (8, 12))
    assert larger.shape == (8, 12) and larger.mean().item() == pytest.approx(
        picture.mean().item(), rel=0.1
    )
    assert larger[4:, 4:8].sum() > 1.4 * larger[:4, 4:8].sum() > 0 and larger[:, :2].max() == 0


def test_each_query_has_its_own_shares():
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(5, 8, generator=generator), torch.randn(9, 8, generator=generator)
    references = [
        ReferenceTokens(torch.randn(n, 8, generator=generator), torch.zeros(n, 8), torch.zeros(n))
        for n in (4, 6)
    ]

    found = query_shares(q, k, references, 2)

    assert [tuple(shares.shape) for shares in found] == [(5, 4), (5, 6)]
    for i in range(5):
        alone = reference_shares(q[i : i + 1], k, references, 2)
        assert all(torch.allclose(shares[i], own) for shares, own in zip(found, alone, strict=True))


def test_coarse_grids_keep_the_aspect_and_their_cells_have_a_token_each():
    assert coarse_size((64, 64), 16) == (16, 16)
    assert coarse_size((8, 6), 16) == (8, 6)
    assert coarse_size((40, 24), 16) == (16, 10)
    assert coarse_size((1, 200), 16) == (1, 16)
    assert cells_at_centres((2, 3), (2, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert cells_at_centres((2, 2), (4, 6)).tolist() == [6 + 1, 6 + 4, 18 + 1, 18 + 4]


def test_coarse_maps_are_means_and_bytes_keep_them():
    maps = as_coarse_maps(
        torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([0, 5]), (2, 4), (1, 2)
    )
    assert maps.tolist() == [[[1.0, 0.0]], [[0.0, 0.0]]]
    levels, peaks = quantised(torch.tensor([[[0.2, 0.1]], [[0.0, 0.0]]]))
    assert levels.dtype == torch.uint8
    assert levels.tolist() == [[[255, 128]], [[0, 0]]] and peaks.tolist() == pytest.approx([0.2, 0])
