"""Best of a Batch, and the column that tells a person from a copy."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker

from magicportrait.host.metrics.table import MetricTable
from magicportrait.nodes.metrics import MagicBestOfBatch, MagicPortraitMetrics

IMAGES = torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(0))
TABLE = MetricTable(
    {"CSIM": (0.2, math.nan, 0.9, 0.5), "LPIPS": (0.2, 0.1, 0.9, 0.5)}, {"DINO": "no folder"}
).json(["1", "2", "3", "4"])


class Colours:
    """In place of an identity network: the mean colour is the person."""

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(images.mean((1, 2)), dim=-1)


def best(column: str, count: int, **options: Any) -> tuple[Any, ...]:
    arguments = {"images": IMAGES, "json": TABLE, "column": column, "count": count, **options}
    out: tuple[Any, ...] = MagicBestOfBatch.execute(**arguments).args
    return out


def test_the_best_come_first_and_what_is_not_measured_does_not_come() -> None:
    images, samples, report = best("CSIM", 2)
    assert torch.equal(images, IMAGES[[2, 3]]) and isinstance(samples, ExecutionBlocker)
    assert report == "picture 3: CSIM 0.9000\npicture 4: CSIM 0.5000"
    assert torch.equal(best("CSIM", 9)[0], IMAGES[[2, 3, 0]])
    # Of a distance the least is best.
    assert torch.equal(best("LPIPS", 2)[0], IMAGES[[1, 0]])


def test_latents_come_with_their_masks_and_noise() -> None:
    latent, masks = torch.rand(4, 4, 2, 2), torch.rand(4, 16, 16)
    samples = {"samples": latent, "noise_mask": masks, "batch_index": [5, 6, 7, 8], "more": 1}
    out = best("CSIM", 2, samples=samples)[1]
    assert torch.equal(out["samples"], latent[[2, 3]])
    assert torch.equal(out["noise_mask"], masks[[2, 3]])
    assert out["batch_index"] == [7, 8] and out["more"] == 1
    one = best("CSIM", 1, samples={"samples": latent, "noise_mask": masks[:1]})[1]
    assert torch.equal(one["noise_mask"], masks[:1]) and one["batch_index"] == [2]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"json": "no"}, "json is no table of Portrait Metrics"),
        ({"json": "[]"}, "json is no table of Portrait Metrics"),
        ({"column": "DINO"}, r"has not measured DINO \(no folder\). It has CSIM, LPIPS"),
        ({"column": "copying"}, "connect other pictures of the person"),
        ({"column": "age"}, "column: 'age' is not one of"),
        ({"images": IMAGES[:3]}, "images are 3, but Portrait Metrics measured 4"),
        ({"samples": {"samples": torch.rand(2, 4, 2, 2)}}, "samples are 2, but"),
        ({"count": 0}, "count is 0"),
        (
            {"json": MetricTable({"CSIM": (math.nan,) * 4}).json(list("1234"))},
            "none of the pictures has a number for CSIM",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        best(**{"column": "CSIM", "count": 1, **options})


def colour(*values: float) -> torch.Tensor:
    return torch.tensor(values).float().expand(1, 8, 8, 3)


def test_copying_is_likeness_to_the_very_pictures_beyond_that_to_the_person() -> None:
    reference, other = colour(1, 0, 0), colour(1, 1, 0)
    images = torch.cat([reference, other, colour(1, 0.4142, 0)])
    options = {"images": images, "references": reference, "identity": Colours()}
    off = {name: "off" for name in ("clip", "dino", "lpips", "aesthetic")}
    table = json.loads(MagicPortraitMetrics.execute(**options, **off, others=other).args[2])
    values = [picture["copying"] for picture in table["pictures"]]
    step = 1 - 0.5**0.5
    assert values == pytest.approx([step, -step, 0], abs=1e-3)
    without = MagicPortraitMetrics.execute(**options, **off).args
    assert all("copying" not in text for text in without)
    alone = {**options, "references": None}
    table = json.loads(MagicPortraitMetrics.execute(**alone, **off, others=other).args[2])
    assert table["missing"]["copying"] == "no reference pictures: connect some"
