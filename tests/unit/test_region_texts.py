from __future__ import annotations

import pytest
import torch

from magicportrait.magic.region_texts import PhraseText, text_weights


def test_texts_that_overlap_share_the_place() -> None:
    whole = torch.ones(1, 4, 4)
    left = torch.zeros(1, 4, 4)
    left[..., :2] = 0.5
    one, other = text_weights([whole, left], (2, 2))
    torch.testing.assert_close(one, torch.tensor([[1 / 1.5, 1, 1 / 1.5, 1]]))
    torch.testing.assert_close(other, torch.tensor([[0.5 / 1.5, 0, 0.5 / 1.5, 0]]))
    # What is less than all of the place stays as it is.
    [alone] = text_weights([left], (4, 4))
    assert torch.equal(alone, left.flatten(1))


def test_a_region_has_soft_edges_on_a_finer_grid() -> None:
    left = torch.cat([torch.ones(1, 2, 1), torch.zeros(1, 2, 1)], dim=2)
    [weight] = text_weights([left], (2, 4))
    assert torch.equal(weight.view(2, 4)[0], torch.tensor([1, 0.75, 0.25, 0]))


def test_a_text_has_words() -> None:
    with pytest.raises(ValueError, match="text is empty"):
        PhraseText(" ")
    assert PhraseText("", "a hat").negative == "a hat"
