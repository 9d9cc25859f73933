"""Boxes and points: what users type, and the choice among many."""

from __future__ import annotations

import pytest
import torch

from magicportrait.magic.boxes import (
    FACE_AREAS,
    Box,
    box_of_mask,
    box_of_most,
    choose,
    parse_boxes,
    parse_points,
)


def test_digits_of_any_width_are_digits_and_raised_ones_are_not() -> None:
    assert parse_boxes("４，０、８；８".replace("；", "，")) == [Box(4, 0, 8, 8)]
    for text in ("4²,0,8,8", "④,0,8,8", "½,0,8,8", "4₂,0,8,8", "4_0,0,8,8"):
        with pytest.raises(ValueError, match=f"'{text}' is not understood"):
            parse_boxes(text)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("", []),
        ("120,80", [(120, 80)]),
        (" 1.5, 2 ; -3,4;\n5,6", [(1.5, 2), (-3, 4), (5, 6)]),
        ('[{"x": 1, "y": 2}, {"x": 3, "y": 4, "more": 5}]', [(1, 2), (3, 4)]),
        ('{"x": 1, "y": 2}', [(1, 2)]),
    ],
)
def test_points_are_read(text, points):
    assert parse_points(text) == points


@pytest.mark.parametrize("text", ["120", "1,2,3", "a,b", "[1, 2]", '[{"x": 1}]', "[{", "1;2"])
def test_points_that_are_not_understood_are_named(text):
    with pytest.raises(ValueError, match="is not understood: expected x,y in pixels"):
        parse_points(text)


def test_boxes_are_read():
    assert parse_boxes("1，2、30,４０；") == [Box(1, 2, 30, 40)]
    assert parse_boxes("1,2,30,40; 5,6,7,8") == [Box(1, 2, 30, 40), Box(5, 6, 7, 8)]
    assert parse_boxes('{"x": 1, "y": 2, "width": 3, "height": 4}') == [Box(1, 2, 3, 4)]
    with pytest.raises(ValueError, match="width and height must be above 0, got 0 and 5"):
        parse_boxes("1,2,0,5")


def test_clipping():
    assert Box(-10, -10, 30, 20).clipped((100, 50)) == Box(0, 0, 20, 10)
    assert Box(40, 90, 30, 20).clipped((100, 50)) == Box(40, 90, 10, 10)
    assert Box(50, 0, 10, 10).clipped((100, 50)) is None
    assert Box(0, -20, 10, 20).clipped((100, 50)) is None


def test_a_head_holds_face_and_hair():
    face = Box(100, 200, 80, 100)
    assert face.expanded(*FACE_AREAS["face"]) == face
    with_hair, head = (face.expanded(*FACE_AREAS[area]) for area in ("face+hair", "head"))
    assert with_hair.corners == pytest.approx((84, 155, 196, 305))
    assert head.corners == pytest.approx((76, 140, 204, 320))


def test_choice_among_twenty():
    faces = [Box((7 * i) % 20 * 50, 10, 20 + i, 30) for i in range(20)]
    ordered = choose(faces, "all", 0)
    assert [box.x for box in ordered] == [50 * i for i in range(20)]
    assert choose(faces, "largest", 0) == [faces[19]]
    assert choose(faces, "index", 3) == [ordered[3]]
    assert choose(faces, "index", 20) == []
    assert choose([], "largest", 0) == choose([], "all", 0) == choose([], "index", 0) == []


@pytest.mark.parametrize(
    "text",
    [
        "inf,2",
        "nan,2",
        "1e400,2",
        "9" * 400 + ",2",
        "[" * 3000,
        '[{"x": 1e999, "y": 2}]',
        f'[{{"x": {"9" * 400}, "y": 2}}]',
        '[{"x": null, "y": 2}]',
    ],
)
def test_numbers_that_are_none_and_deep_brackets_are_not_understood(text):
    with pytest.raises(ValueError, match="is not understood: expected x,y in pixels") as refused:
        parse_points(text)
    assert len(str(refused.value)) < 250, "a message shows the beginning"


def test_the_box_of_a_mask_is_that_of_what_is_above_one_half():
    mask = torch.zeros(10, 12)
    mask[2:5, 3:9] = 1
    mask[8, 8] = 0.5
    assert box_of_mask(mask) == Box.between(3, 2, 9, 5)
    assert Box.between(3, 2, 9, 5).pixels == (slice(2, 5), slice(3, 9))
    assert box_of_mask(mask * 0.5) is None


def test_the_box_of_most_is_the_same_part_of_every_rectangle() -> None:
    mask = torch.zeros(20, 30)
    mask[4:14, 10:20] = 1
    box = box_of_most(mask, 0.8)
    assert box is not None
    assert [round(side, 6) for side in box.corners] == [11, 5, 19, 13]
    assert box_of_most(torch.zeros(3, 3)) is None


def test_a_single_cell_far_away_does_not_stretch_the_box_of_most() -> None:
    mask = torch.zeros(20, 30)
    mask[4:14, 10:20] = 1
    alone = box_of_most(mask)
    mask[19, 29] = 1
    box = box_of_most(mask)
    assert alone is not None and box is not None
    assert all(abs(a - b) < 0.2 for a, b in zip(alone.corners, box.corners, strict=True))
