"""Strengths that change over sampling."""

from __future__ import annotations

import pytest

from magicportrait.magic.curves import Curve, parse_curve


def test_it_goes_straight_between_its_points() -> None:
    curve = parse_curve("0.2: 3, 0.6:1; 1 : 1.5", -10, 10)
    assert curve == Curve(((0.2, 3), (0.6, 1), (1, 1.5)))
    shares = (0, 0.2, 0.3, 0.6, 0.8, 1)
    assert [curve.at(share) for share in shares] == pytest.approx([3, 3, 2.5, 1, 1.25, 1.5])


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
