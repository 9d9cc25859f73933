"""Exploring a MagicFace picture: what is recorded is what the layers did, it is bounded, and it
goes with the run."""

from __future__ import annotations

import base64
import gc
import io
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from magicportrait.host.analysis import exploration
from magicportrait.host.page.correspondence_view import answer
from magicportrait.host.systems import magicface
from magicportrait.nodes.analysis import MagicCorrespondence, MagicCorrespondenceMap
from magicportrait.tests.host.sampling import Sampling, apply, concepts, parts

WHOLE = torch.ones(1, 128, 128)
HEADS = 4
FINE, COARSE = "16x16", "8x8"
EVERYWHERE = {"picture": "0", "x": "0.5", "y": "0.5", "step": "1", "group": FINE}


def watch(model: Any, explore: bool = True, start: float = 0.0) -> tuple[Any, Any]:
    return MagicCorrespondence.execute(model, "", start, 1.0, WHOLE, explore).args


def explore(
    sampling: Sampling, start: float = 0.0, **options: Any
) -> tuple[Any, Any, torch.Tensor]:
    """The exploration of a run, its correspondence, and what was sampled."""
    face, positive, _ = apply(parts()[0], **options)
    patched, record = watch(face, start=start)
    samples = sampling.run(patched, positive)
    found = record.run_of(samples)
    return found.exploration, found, samples


@pytest.fixture
def exploration_on_page() -> tuple[Any, dict[str, Any], Any]:
    """The record of a run of two pictures, what the page was told of it, and its exploration's
    key."""
    chained = concepts()
    face, positive, _ = apply(parts()[0], chained=chained)
    patched, record = watch(face)
    samples = Sampling(batch=2, steps=2).run(patched, positive)
    output = MagicCorrespondenceMap.execute(
        record, {"samples": samples}, 0.8, chained, torch.rand(2, 128, 128, 3)
    )
    [data] = output.ui["magic_exploration"]
    return record, data, data["key"]


# ---- what is recorded ----


@pytest.mark.parametrize("size", [(16, 16), (40, 24)])
def test_a_place_looks_where_its_token_does(monkeypatch, size):
    """One layer, one step: one token's softmax over the picture's own tokens and all references',
    written out."""
    taken: list[tuple[Any, ...]] = []
    original = magicface.reference_attention
    monkeypatch.setattr(
        magicface, "reference_attention", lambda *args: (taken.append(args), original(*args))[1]
    )
    recorded, *_ = explore(Sampling(batch=2, steps=1, size=size), layers="o11", inject_at=1.0)
    [(q, k, _, references, _)] = taken
    [(group, (rows, columns))] = recorded.grids.items()
    assert (rows, columns) == ((16, 16) if size == (16, 16) else (16, 10))

    for picture, row, column in ((0, 3, 4), (1, rows - 1, 0), (1, 0, columns - 1)):
        token = int((row + 0.5) * size[0] / rows) * size[1] + int(
            (column + 0.5) * size[1] / columns
        )
        keys = torch.cat([k[picture], *(reference.k for reference in references)])
        bias = torch.cat([torch.zeros(k.shape[1]), *(reference.bias for reference in references)])
        shares = torch.zeros(len(keys))
        for head in range(HEADS):
            part = slice(head * keys.shape[1] // HEADS, (head + 1) * keys.shape[1] // HEADS)
            logits = keys[:, part] @ q[picture, token, part] / math.sqrt(keys.shape[1] // HEADS)
            shares += (logits + bias).softmax(-1) / HEADS
        split = shares.split([k.shape[1], *(len(reference.bias) for reference in references)])

        found = recorded.look(picture, (column + 0.5) / columns, (row + 0.5) / rows, 0, group)

        assert found.place == (column / columns, row / rows, 1 / columns, 1 / rows)
        for share, heat, expected in zip(found.shares, found.maps, split[1:], strict=True):
            assert share == pytest.approx(float(expected.sum()), rel=1e-3)
            # The mask of `concepts` shows rows 2 to 9 and columns 4 to 13 of 16.
            inside = heat[2:10, 4:14]
            assert (heat > 0).sum() == (inside > 0).sum()
            assert torch.allclose(
                inside.flatten(), expected, atol=0.6 * float(expected.max()) / 255
            )


@pytest.mark.parametrize("inject_at", [0.0, 1.0])
def test_all_places_together_are_the_watched_whole(inject_at):
    """Here every token is a place, and both groups have three layers."""
    recorded, correspondence, _ = explore(Sampling(batch=2, steps=3), inject_at=inject_at)
    assert recorded.grids == {FINE: (16, 16), COARSE: (8, 8)} and recorded.steps == [0, 1, 2]
    mean = torch.stack([maps.shares.mean(1) for maps in recorded.maps.values()]).mean(0)
    assert torch.allclose(mean, correspondence.shares, rtol=1e-3)
    assert (mean > 0).all()


def test_a_place_of_a_region_looks_at_its_own_reference_only():
    left, right = torch.zeros(1, 128, 128), torch.zeros(1, 128, 128)
    left[..., :64], right[..., 64:] = 1, 1
    both = (*concepts(1, region=left), *concepts(2, region=right)[1:])
    recorded, *_ = explore(Sampling(steps=2), chained=both, inject_at=0.0)
    for x, own in ((0.2, 0), (0.8, 1)):
        for step, group in recorded.maps:
            found = recorded.look(0, x, 0.5, group, step)
            assert found.shares[own] > 0 and found.shares[1 - own] == 0
            assert found.maps[own].max() > 0 and found.maps[1 - own].max() == 0


def test_references_of_two_sizes_keep_their_maps():
    [hat], large = concepts(1), concepts(2, size=(192, 128))[1]
    recorded, correspondence, _ = explore(Sampling(steps=1), chained=(hat, large), inject_at=1.0)
    found = recorded.look(0, 0.5, 0.5, 0, FINE)
    assert [tuple(heat.shape) for heat in found.maps] == [(16, 16), (16, 11)]
    mean = torch.stack([maps.shares.mean(1) for maps in recorded.maps.values()]).mean(0)
    assert torch.allclose(mean, correspondence.shares, rtol=1e-3)


def test_only_the_watched_part_of_sampling_is_recorded():
    recorded, *_ = explore(Sampling(steps=4), start=0.5)
    assert recorded.steps and recorded.steps[-1] == 3 and recorded.steps[0] >= 1


@pytest.mark.parametrize("explore", [True, False])
def test_exploring_does_not_change_the_picture(explore):
    face, positive, _ = apply(parts()[0])
    patched, record = watch(face, explore)
    sampling = Sampling(batch=2, steps=3)
    samples = sampling.run(patched, positive)
    assert torch.equal(samples, sampling.run(face, positive))
    assert (record.run_of(samples).exploration is not None) == explore
    output = MagicCorrespondenceMap.execute(record, {"samples": samples}, 0.8)
    assert ("magic_exploration" in output.ui) == explore


# ---- how much, and for how long ----


def test_memory_is_bounded(monkeypatch):
    sampling = Sampling(batch=2, steps=4)
    free = explore(sampling)[0]
    assert (
        free.bytes <= exploration.MOST_BYTES and free.steps == [0, 1, 2, 3] and free.pictures == 2
    )

    monkeypatch.setattr(exploration, "MOST_BYTES", free.bytes // 2 + 1)
    thinned = explore(sampling)[0]
    assert thinned.steps == [1, 3] and thinned.bytes == free.bytes // 2

    monkeypatch.setattr(exploration, "MOST_BYTES", free.bytes // 8 + 1)
    one_picture = explore(sampling)[0]
    assert (
        one_picture.steps == [3]
        and one_picture.pictures == 1
        and one_picture.bytes == free.bytes // 8
    )
    with pytest.raises(ValueError, match="no picture 1"):
        one_picture.look(1, 0, 0, 3, FINE)

    monkeypatch.setattr(exploration, "MOST_BYTES", 1000)
    assert explore(Sampling(steps=1))[0] is None


def cancel(step: int, *_: Any) -> None:
    if step == 1:
        raise InterruptedError


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_nothing_of_the_run_is_held(monkeypatch, is_cancelled):
    made: list[weakref.ref] = []
    original = exploration.query_shares

    def track(*args: Any) -> Any:
        found = original(*args)
        made.extend(weakref.ref(shares) for shares in found)
        return found

    monkeypatch.setattr(exploration, "query_shares", track)
    face, positive, _ = apply(parts()[0])
    patched, record = watch(face)
    if is_cancelled:
        with pytest.raises(InterruptedError):
            Sampling(steps=3, callback=cancel).run(patched, positive)
        with pytest.raises(ValueError, match="the correspondence is empty"):
            record.run_of(torch.zeros(1))
    else:
        samples = Sampling(steps=3).run(patched, positive)
        assert all(
            tensor.device.type == "cpu"
            for maps in record.run_of(samples).exploration.maps.values()
            for tensor in maps.levels
        )
    gc.collect()
    assert made and not [ref for ref in made if ref() is not None]


def test_a_run_can_be_asked_for_as_long_as_its_record_lives(exploration_on_page):
    record, _, key = exploration_on_page
    assert answer(key, EVERYWHERE)[0] == 200
    kept = weakref.ref(record.run_of(torch.ones(2)).exploration)
    record._runs.clear()
    gc.collect()
    assert kept() is None
    status, data = answer(key, EVERYWHERE)
    assert status == 404 and "queue the workflow again" in data["error"]


# ---- what the page gets ----


def test_the_page_is_told_what_it_can_ask_for(exploration_on_page):
    _, data, _ = exploration_on_page
    assert [reference["phrase"] for reference in data["references"]] == ["hat", "scarf"]
    assert [group["name"] for group in data["groups"]] == [FINE, COARSE]
    assert (data["steps"], data["total"], len(data["pictures"])) == ([0, 1], 2, 2)
    assert all(
        picture["type"] == "temp"
        for picture in (*data["pictures"], *(each["picture"] for each in data["references"]))
    )
    status, found = answer(
        data["key"], {**EVERYWHERE, "x": str(data["place"][0]), "y": str(data["place"][1])}
    )
    assert status == 200 and sum(reference["share"] for reference in found["references"]) > 0


def test_an_answer_is_transparent_pictures_and_numbers(exploration_on_page):
    record, data, key = exploration_on_page
    most = record.run_of(torch.ones(2)).exploration
    x, y = data["place"]
    status, found = answer(key, {**EVERYWHERE, "x": str(x), "y": str(y)})
    expected = most.look(0, x, y, 1, FINE)
    assert status == 200
    assert [each["share"] for each in found["references"]] == pytest.approx(
        list(expected.shares), abs=1e-6
    )
    heats = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(each["heat"]))))
        for each in found["references"]
    ]
    assert [heat.shape for heat in heats] == [(64, 64, 4)] * 2
    brightest = max(range(2), key=lambda i: float(expected.maps[i].max()))
    hottest = heats[brightest][..., 3]
    row, column = divmod(int(hottest.argmax()), 64)
    peak = found["references"][brightest]["peak"]
    assert abs((column + 0.5) / 64 - peak[0]) < 0.07 and abs((row + 0.5) / 64 - peak[1]) < 0.07
    assert hottest.max() > 200 and hottest.min() < 80, "cold places let the reference through"


def test_senseless_questions_are_refused(exploration_on_page):
    key = exploration_on_page[2]
    for question, complaint in (
        ({"x": "left"}, "x must be a number, not 'left'"),
        ({"picture": "1.5"}, "picture must be a number"),
        ({"picture": "2"}, "no picture 2: known are 0 to 1"),
        ({"picture": "-1"}, "no picture -1"),
        ({"x": "1.01"}, "outside the picture"),
        ({"y": "nan"}, "outside the picture"),
        ({"step": "7"}, "step 7 was not recorded: known are 0, 1"),
        ({"group": "3x3"}, "no layer group '3x3': known are 16x16, 8x8"),
    ):
        status, data = answer(key, {**EVERYWHERE, **question})
        assert status == 400 and complaint in data["error"]
    assert answer(key, {})[0] == 400
    assert answer("another", EVERYWHERE)[0] == 404


def test_the_picture_must_be_that_of_the_run(exploration_on_page):
    record, *_ = exploration_on_page
    with pytest.raises(ValueError, match="image has 1 pictures, but the run had 2"):
        MagicCorrespondenceMap.execute(
            record, {"samples": torch.ones(2, 4, 16, 16)}, 0.8, (), torch.rand(1, 128, 128, 3)
        )
