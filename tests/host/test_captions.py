"""Captions, legends and labels: every script, no boxes, and never larger than their place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from magicportrait.host.layout.masks import LayoutMasks, overlay
from magicportrait.host.pictures.captions import Lettering
from magicportrait.host.pictures.fonts import Fonts
from magicportrait.host.pictures.palette import DISTINCT, PALETTE, colour, colour_name, paint
from magicportrait.nodes.metrics import MagicCompareGrid

LETTERING = Lettering(18, (0, 0, 0))
GRID = {"row_captions": "", "column_captions": "", "title": "", "cell": 64, "turned": False}
SMALL = {"gap": 4, "font": 12}
PICTURES = torch.full((2, 32, 32, 3), 0.5)


def draw(text: str) -> np.ndarray:
    sheet = Image.new("RGB", (400, 80), "white")
    LETTERING.write(sheet, text, (10, 10))
    return np.asarray(sheet)


@pytest.mark.parametrize(
    ("one", "other"), [("帽子", "围巾"), ("ぼうし", "まふら"), ("모자", "수건"), ("шапка", "шарфы")]
)
def test_words_of_other_scripts_are_drawn_and_not_boxes(one, other):
    """Boxes would be the same for all words of one length."""
    assert (draw(one) < 128).any() and not np.array_equal(draw(one), draw(other))
    missing = Fonts(18).plain.getmask("\U0010ffff")
    for character in one:
        font = Fonts(18).of(character)
        assert font is not None and bytes(font.getmask(character)) != bytes(missing)


@pytest.mark.parametrize("text", ["hat", "two\nlines", "(a, b) - 0.5!"])
def test_ascii_is_drawn_by_pils_own_font(text):
    from PIL import ImageDraw, ImageFont

    sheet = Image.new("RGB", (400, 80), "white")
    font = ImageFont.load_default(18)
    ImageDraw.Draw(sheet).text((10, 10), text, fill=(0, 0, 0), font=font, anchor="la")
    assert np.array_equal(draw(text), np.asarray(sheet))


def test_what_no_font_shows_is_spelled_out(monkeypatch):
    from magicportrait.host.pictures import fonts

    monkeypatch.setattr(fonts, "_OF_SYSTEMS", ())
    parts = Lettering(18, (0, 0, 0))._parts("a \u0e01")
    assert [part for part, _ in parts] == ["a \\u0e01"]
    assert np.array_equal(draw("hat\ufe0f\u200d"), draw("hat")), "these only steer others"


def test_a_word_keeps_one_font():
    """PIL's own has no é: all of the word is drawn by the font that has."""
    lettering = Lettering(18, (0, 0, 0))
    assert [part for part, _ in lettering._parts("a café")] == ["a ", "café"]


@pytest.mark.parametrize(
    "word", ["x" * 100_000, "word " * 20_000, "字" * 100_000, "wörd " * 20_000]
)
def test_long_captions_wrap_and_are_cut(word):
    wrapped = LETTERING.wrap(word, 200, 3)
    lines = wrapped.split("\n")
    assert len(lines) == 3 and lines[-1].endswith("...")
    assert LETTERING.size(wrapped)[0] <= 200
    short = LETTERING.wrap(word[:5], 200, 3)
    assert short == word[:5].strip(), "what fits stays as it is"


def test_a_sheet_is_no_larger_for_100_000_letters():
    options = {**GRID, **SMALL}
    plain = MagicCompareGrid.execute(PICTURES, **options).args[0]
    options |= {
        "title": "x" * 100_000,
        "row_captions": "y" * 100_000,
        "column_captions": "z" * 100_000,
    }
    sheet = MagicCompareGrid.execute(PICTURES, **options).args[0]
    assert sheet.shape[1] < plain.shape[1] + 3 * 64 and sheet.shape[2] < plain.shape[2] + 2 * 64


# ---- colours ----


def phrases_of(count: int, side: int = 64) -> tuple[torch.Tensor, str]:
    """An overlay without picture of so many phrases in a row of stripes."""
    masks = torch.zeros(count, 1, side, side)
    for i in range(count):
        masks[i, 0, :, side * i // count : side * (i + 1) // count] = 1
    return overlay(
        LayoutMasks(tuple(masks), torch.ones(1, side, side)), [f"p{i}" for i in range(count)], None
    )


def test_twelve_phrases_have_twelve_colours():
    picture, legend = phrases_of(12)
    names = [entry.split(": ")[1] for entry in legend.split(", ")]
    assert len(set(names)) == 12 and len(set(PALETTE)) == len(PALETTE) >= 12
    first_row = {tuple(pixel) for pixel in (picture[0, 0] * 255).round().int().tolist()}
    assert len(first_row) == 12


def test_more_phrases_than_colours_get_patterns_that_the_legend_names():
    count = len(PALETTE)
    _, legend = phrases_of(2 * count + 1)
    assert f"p{count}: striped orange" in legend and f"p{2 * count}: checked orange" in legend
    surfaces = [paint(phrase, 16, 16) for phrase in (0, count, 2 * count)]
    assert not torch.equal(surfaces[0], surfaces[1]) and not torch.equal(surfaces[1], surfaces[2])
    for surface in surfaces[1:]:
        assert {tuple(pixel) for pixel in surface.flatten(0, 1).tolist()} == {
            (1.0, 1.0, 1.0),
            tuple((torch.tensor(colour(0)) / 255).tolist()),
        }
    assert colour_name(0) == "orange"


def test_as_many_phrases_as_are_distinct_have_surfaces_of_their_own_and_the_next_a_number():
    surfaces = {paint(phrase, 16, 16).numpy().tobytes() for phrase in range(DISTINCT)}
    names = {colour_name(phrase) for phrase in range(2 * DISTINCT)}
    assert len(surfaces) == DISTINCT and len(names) == 2 * DISTINCT
    assert torch.equal(paint(DISTINCT, 16, 16), paint(0, 16, 16))
    assert colour_name(DISTINCT) == "orange 2"


def test_a_legend_of_thousands_is_cut():
    picture, _ = phrases_of(300, 8)
    assert picture.shape[1] < 8 + 70 * 14
