"""References in models that turn keys by position: moved keys are those that the model would have
made there, picture by picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from magicportrait.host.sampling.backbone import LayerView, backbone_of
from magicportrait.host.sampling.references import Reference
from magicportrait.host.systems.placement import PlacedReferences
from magicportrait.magic.positions import Coordinates, turned
from magicportrait.magic.reference_attention import ReferenceTokens
from magicportrait.tests.host import dits

GRID, OWN = (6, 8), (4, 5)
"""Of the reference, and of the picture, in tokens."""


def reference(family: str, concept: int, box: tuple[int, int, int, int]) -> Reference:
    """Its mask covers whole tokens: top, bottom, left, right."""
    top, bottom, left, right = box
    mask = torch.zeros(*GRID)
    mask[top:bottom, left:right] = 1
    side = 1 if family == "flux2" else 2
    latent = torch.zeros(1, 16, GRID[0] * side, GRID[1] * side)
    return Reference(concept, latent, mask, 1.0, dits.conditioning(40, 0))


def view_of(family: str, backbone: Any, batch: int) -> LayerView:
    channels = 2 * backbone.rotary.head
    keys = torch.zeros(batch, OWN[0] * OWN[1], channels)
    side = 1 if family == "flux2" else 2
    return LayerView(
        layer=(backbone.layers[0].block, 0),
        cond="ours",
        q=keys,
        k=keys,
        v=keys,
        grid=OWN,
        latent_size=(OWN[0] * side, OWN[1] * side),
        heads=2,
        attend=lambda q, k, v, bias: q,
        coordinates=backbone.coordinates((OWN[0] * side, OWN[1] * side), 20),
    )


def turned_at(backbone: Any, plain: Tensor, positions: Tensor) -> Tensor:
    """Keys as the model would make them at some positions (T A)."""
    return turned(plain, backbone.rotary.angles(positions), backbone.rotary.pairing, heads=2)


@pytest.mark.parametrize("family", ["flux", "flux2", "qwen", "zimage"])
def test_a_region_has_the_keys_that_the_model_would_make_there(family):
    backbone = backbone_of(dits.random_transformer(family))
    references = [reference(family, 0, (1, 3, 2, 6)), reference(family, 1, (0, 6, 0, 8))]
    view = view_of(family, backbone, 2)
    owners = torch.full((2, *OWN), -1)
    owners[0, 0:4, 1:3], owners[1, 2:3, 0:5] = 0, 0
    owners[1, 0, 0] = 1
    own = backbone.coordinates(references[0].latent.shape[-2:], 40)
    generator = torch.Generator().manual_seed(0)
    axes = len(backbone.rotary.axes)
    plain, bank = [], []
    for item in references:
        index = item.visible_tokens(GRID)[0]
        keys = torch.randn(len(index), view.k.shape[-1], generator=generator)
        plain.append(keys)
        made = turned_at(backbone, keys, own.positions(axes)[index])
        bank.append(ReferenceTokens(made, keys, torch.zeros(len(index))))
    downscale = 1 if family == "flux2" else 2
    placed = PlacedReferences("region", backbone, references)
    hat, whole = placed.move(bank, view, downscale, owners)
    assert view.coordinates is not None
    # The hat's mask is 2 rows and 4 columns: in the first picture they lie on 4 and 2.
    origin_row, origin_column = view.coordinates.origin
    for image, (top, left, height, width) in enumerate([(0, 1, 4, 2), (2, 0, 1, 5)]):
        expected = torch.zeros(8, axes, dtype=torch.float64)
        expected[:, 0] = view.coordinates.index
        for token in range(8):
            row, column = divmod(token, 4)
            expected[token, 1] = top + (row + 0.5) / 2 * height - 0.5 + origin_row
            expected[token, 2] = left + (column + 0.5) / 4 * width - 0.5 + origin_column
        moved = turned_at(backbone, plain[0], expected)
        assert (hat.of(image).k - moved).abs().max() < 1e-5
    # The other concept owns nothing of the first picture: it stays where it is in its own.
    same = Coordinates(GRID, view.coordinates.index, view.coordinates.is_centred)
    moved = turned_at(backbone, plain[1], same.positions(axes))
    assert (whole.of(0).k - moved).abs().max() < 1e-5
    assert whole.k.ndim == 3 and (whole.k[0] - whole.k[1]).abs().max() > 0.1
    assert hat.v is bank[0].v and hat.bias is bank[0].bias


@pytest.mark.parametrize("placement", ["same", "aside", "index", "attenuated", "region"])
def test_without_a_layout_all_pictures_of_a_batch_share_keys(placement):
    backbone = backbone_of(dits.random_transformer("qwen"))
    references = [reference("qwen", 0, (0, 6, 0, 8)), reference("qwen", 1, (0, 6, 0, 8))]
    view = view_of("qwen", backbone, 2)
    keys = torch.randn(48, view.k.shape[-1], generator=torch.Generator().manual_seed(1))
    bank = [ReferenceTokens(keys, keys, torch.zeros(48)) for _ in references]
    first, second = PlacedReferences(placement, backbone, references).move(bank, view, 2, None)
    assert first.k.shape == second.k.shape == keys.shape
    stays = placement in ("same", "region")
    assert (float((first.k - keys).abs().max()) < 1e-5) == stays
    # References aside, and those of a sequence, do not lie on each other.
    assert torch.equal(first.k, second.k) == (placement not in ("aside", "index"))
