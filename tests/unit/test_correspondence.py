"""Correspondence against one softmax written out."""

from __future__ import annotations

import pytest
import torch

from magicportrait.magic.correspondence import as_picture, cells_at_points, cells_in_mask, reference_shares
from magicportrait.magic.reference_attention import ReferenceTokens


def test_shares_are_those_of_one_softmax():
    generator = torch.Generator().manual_seed(0)
    heads, channels = 3, 12
    q, k = torch.randn(300, channels, generator=generator), torch.randn(9, channels, generator=generator)
    references = [
        ReferenceTokens(torch.randn(n, channels, generator=generator), torch.zeros(n, channels), torch.randn(n, generator=generator))
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
    assert cells_at_points([(0, 0), (127.9, 127.9), (64, 0), (65, 3)], (128, 128), (4, 4)).tolist() == [0, 2, 15]
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
    assert larger.shape == (8, 12) and larger.mean().item() == pytest.approx(picture.mean().item(), rel=0.1)
    assert larger[4:, 4:8].sum() > 1.4 * larger[:4, 4:8].sum() > 0 and larger[:, :2].max() == 0
