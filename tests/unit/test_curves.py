"""Strengths that change over sampling."""

from __future__ import annotations

import pytest

from magicportrait.magic.curves import NAMED, Curve, parse_curve


def test_it_goes_straight_between_its_points() -> None:
    curve = parse_curve("0.2: 3, 0.6:1; 1 : 1.5", -10, 10)
    assert curve == Curve(((0.2, 3), (0.6, 1), (1, 1.5)))
    shares = (0, 0.2, 0.3, 0.6, 0.8, 1)
    assert [curve.at(share) for share in shares] == pytest.approx([3, 3, 2.5, 1, 1.25, 1.5])


def test_marks_of_chinese_and_japanese_keyboards_are_read() -> None:
    curve = parse_curve("0：3，０．５：1；1：-２、", -10, 10)
    assert curve == parse_curve("0: 3, 0.5: 1; 1: -2", -10, 10) is not None
    assert parse_curve("　Ｒｉｓｅ", -10, 10) is NAMED["rise"]
    for text in ("0: 1²", "0: 1_0"):
        with pytest.raises(ValueError, match=f"'{text}' is no point"):
            parse_curve(text, -10, 20)


def test_one_point_is_a_constant_and_nothing_no_curve() -> None:
    constant = parse_curve("0.5: 2", -10, 10)
    assert constant is not None and constant.at(0) == constant.at(1) == 2
    assert parse_curve(" \n", -10, 10) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("3", "'3' is no point of a curve"),
        ("0: high", "is no point"),
        ("0: nan", "is no point"),
        ("-1: 2", "is no point"),
        ("2: 2", "is no point"),
        ("0: 11", r"strengths \(-10 to 10\)"),
        ("0: 1, 0: 2", "rising order"),
        ("0.5: 1, 0.2: 2", "rising order"),
        (",", "has 0 points"),
        (", ".join(f"{i / 100}: 1" for i in range(65)), "has 65 points"),
    ],
)
def test_what_is_no_curve_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_curve(text, -10, 10)


def test_a_name_is_a_part_of_the_strength_of_the_node() -> None:
    fall = parse_curve(" Fall\n", -10, 10)
    assert fall is not None and fall.is_of_strength
    assert [fall.of(4.0).at(share) for share in (0, 0.25, 1)] == pytest.approx([4, 3, 0])
    assert fall.of(4.0).of(5.0) == fall.of(4.0) and not fall.of(4.0).is_of_strength
    points = parse_curve("0: 1", -10, 10)
    assert points is not None and points.of(4.0) == points


@pytest.mark.parametrize("name", NAMED)
def test_named_curves_begin_and_end_as_they_are_called(name: str) -> None:
    ends = {"rise": (0, 1), "fall": (1, 0), "early": (1, 0), "late": (0, 1), "bell": (0, 0)}
    curve = parse_curve(name, 0, 1)
    assert curve is not None and (curve.at(0), curve.at(1)) == ends[name]
    assert all(0 <= curve.at(i / 20) <= 1 for i in range(21))
    assert max(curve.at(i / 20) for i in range(21)) == 1
    with pytest.raises(ValueError, match=rf"one of .*\b{name}\b"):
        parse_curve(f"{name}s", 0, 1)
