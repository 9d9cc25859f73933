from __future__ import annotations

import pytest
import torch

from magicportrait.magic.boxes import Box
from magicportrait.magic.detail_areas import (
    Line,
    check_named,
    check_numbers,
    lines_of,
    numbers_as_text,
    read_lines,
    rectangle,
    soft_area,
    target_in,
    texts_of_areas,
)
from magicportrait.magic.portrait_crop import Crop

LINES = ["a woman wearing a hat", "a man"]


def test_one_text_is_for_all_areas_and_several_are_for_one_each() -> None:
    assert lines_of(" a woman wearing a hat \n\n a man\n") == LINES
    assert texts_of_areas(LINES[:1], 3, 1) == LINES[:1] * 3
    assert texts_of_areas(LINES, 2, 1) == LINES
    assert texts_of_areas(LINES, 0, 1) == []
    with pytest.raises(ValueError, match="2 lines, but picture 5 has 3 areas"):
        texts_of_areas(LINES, 3, 5)
    with pytest.raises(ValueError, match="text is empty"):
        lines_of(" \n ")


def test_a_line_names_whole_words() -> None:
    # 'man' is not in 'woman'.
    read = read_lines(LINES, ["man", "hat", "woman"])
    assert read == [Line(LINES[0], {1: "hat", 2: "woman"}), Line(LINES[1], {0: "man"})]
    assert read_lines(["a Red  hat"], ["red hat"])[0].named == {0: "red hat"}
    check_named(LINES, read, ["man", "hat", "woman"])
    with pytest.raises(ValueError, match=r"the line 'a man' of text names no phrase .* \(hat\)"):
        check_named(LINES, read_lines(LINES, ["hat"]), ["hat"])


TWO = ["a man with a hat", "an old man and a man"]


@pytest.mark.parametrize(
    ("lines", "phrases", "named"),
    [
        # Counted over all lines; each line has its own number of it.
        (TWO, ["man#1"], [{0: "man"}, {}]),
        (TWO, ["man #2", "Man#3"], [{}, {0: "man#1", 1: "Man#2"}]),
        (TWO, ["man#4"], [{}, {}]),
        # The others, and twins in their order.
        (TWO, ["man#2", "man"], [{1: "man"}, {0: "man#1", 1: "man"}]),
        (TWO, ["man", "man"], [{0: "man"}, {1: "man#1"}]),
        (["a man", "a man"], ["man", "man", "man"], [{0: "man"}, {1: "man", 2: "man"}]),
        (["a man"], ["man", "man"], [{0: "man", 1: "man"}]),
        # A longer phrase has its words, unless the shorter one is nowhere else.
        (["a red hat", "a hat"], ["hat", "red hat"], [{1: "red hat"}, {0: "hat"}]),
        (["a red hat"], ["hat", "red hat"], [{0: "hat", 1: "red hat"}]),
    ],
)
def test_occurrences_are_counted_over_all_lines(
    lines: list[str], phrases: list[str], named: list[dict[int, str]]
) -> None:
    assert read_lines(lines, phrases) == [
        Line(line, own) for line, own in zip(lines, named, strict=True)
    ]


def test_numbers_that_are_written_count_and_are_no_part_of_the_text() -> None:
    lines = ["man#2 with a hat", "a man ＃1, a man", "a scarf#2"]
    one, two, three = read_lines(lines, ["man#1", "man#2", "scarf"])
    assert (one.text, one.named) == ("man with a hat", {1: "man"})
    assert (two.text, two.named) == ("a man, a man", {0: "man#1"})
    # All scarfs are of this phrase.
    assert (three.text, three.named) == ("a scarf", {2: "scarf"})
    assert [line.named for line in read_lines(lines, ["man", "man"])] == [
        {1: "man"},
        {0: "man#1"},
        {},
    ]
    assert [line.named for line in read_lines(lines, ["man#2", "man"])] == [
        {0: "man"},
        {1: "man"},
        {},
    ]


@pytest.mark.parametrize(
    ("lines", "phrases", "named", "texts"),
    [
        # Weights around the words, in the lines, in the phrases, and in both.
        (
            ["(man:1.2)#2 with a hat", "a man"],
            ["man#1", "man#2"],
            [{1: "man"}, {0: "man"}],
            ["(man:1.2) with a hat", "a man"],
        ),
        (
            ["((man)) ＃ 2", "(man#1:0.9)"],
            ["(man:1.2)#1", "(man#2:1.2)"],
            [{1: "(man:1.2)"}, {0: "(man:1.2)"}],
            ["((man))", "(man:0.9)"],
        ),
        # Brackets and quotes, which are text.
        (
            ['[man]#2 and "man" #1', "{man#3}"],
            ["man#1", "man#2", "man#3"],
            [{0: "man#2", 1: "man#1"}, {2: "man"}],
            ['[man] and "man"', "{man}"],
        ),
        # A number behind a longer phrase is not that of the words inside of it.
        (
            ["a red hat#1", "a hat#1", "a hat"],
            ["hat#1", "red hat#1", "hat#2"],
            [{1: "red hat"}, {0: "hat"}, {2: "hat"}],
            ["a red hat", "a hat", "a hat"],
        ),
        (["a red hat#1", "a hat"], ["hat#1", "red hat#1"], [{1: "red hat"}, {0: "hat"}], None),
        (["a red hat#1", "a hat#2"], ["hat", "red hat"], [{1: "red hat"}, {0: "hat"}], None),
        (
            ["a red hat, a hat#1", "a hat#2"],
            ["hat#1", "red hat"],
            [{0: "hat#2", 1: "red hat"}, {}],
            None,
        ),
        (["a red hat#1"], ["hat", "red hat"], [{0: "hat", 1: "red hat"}], None),
        (["(红帽子:1.2)#1", "帽子#1"], ["帽子#1", "红帽子#1"], [{1: "红帽子"}, {0: "帽子"}], None),
        (["红帽子", "帽子"], ["帽子", "红帽子"], [{1: "红帽子"}, {0: "帽子"}], None),
        # No space stands behind a number where none stands between words.
        (
            ["戴帽子#2的男人", "戴(帽子:1.2)＃１的男人"],
            ["帽子", "帽子"],
            [{1: "帽子"}, {0: "帽子"}],
            ["戴帽子的男人", "戴(帽子:1.2)的男人"],
        ),
        (
            ["eine weiße Mütze#2", "eine Mütze#1"],
            ["Mütze#1", "Weiße Mütze#2"],
            [{1: "Weiße Mütze"}, {0: "Mütze"}],
            ["eine weiße Mütze", "eine Mütze"],
        ),
    ],
)
def test_numbers_belong_to_the_whole_phrase_with_its_weight(
    lines: list[str], phrases: list[str], named: list[dict[int, str]], texts: list[str] | None
) -> None:
    check_numbers(lines, phrases)
    read = read_lines(lines, phrases)
    assert [line.named for line in read] == named
    assert texts is None or [line.text for line in read] == texts


def test_words_without_a_number_have_what_is_written_nowhere() -> None:
    lines = ["a man with a hat", "man # 2 with a scarf", "a man, a cap #5"]
    one, two, three = read_lines(lines, ["man#1", "man#2", "man#3"])
    assert (one.named, two.named, three.named) == ({0: "man"}, {1: "man"}, {2: "man"})
    assert two.text == "man with a scarf"
    assert numbers_as_text([one, two, three]) == ["cap #5"]
    [one, *_] = read_lines(["an old man and man#1"], ["man#2", "man#1"])
    assert one == Line("an old man and man", {0: "man#1", 1: "man#2"})


@pytest.mark.parametrize(
    ("lines", "phrases", "complaint"),
    [
        (["man#99 with a hat", "a man"], ["man"], "number 99 of 'man', which stands there 2 times"),
        (
            ["man # 0"],
            ["man#1"],
            "'man # 0' of text has number 0 of 'man', which stands there once",
        ),
        (["a man"], ["man#0"], "phrase 'man#0' names no 'man': occurrences count from 1"),
        (["(man:1.2)#3"], ["man"], "which stands there once: write no number, or that of a"),
        (["red hat#2", "hat"], ["hat", "red hat"], "number 2 of 'red hat', which stands there on"),
    ],
)
def test_numbers_of_nothing_are_named(lines: list[str], phrases: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_numbers(lines, phrases)


def test_numbers_of_men_that_are_not_drawn_anew_are_right() -> None:
    check_numbers(["man#1", "man#3"], ["man#3", "man#1"])
    check_numbers(["man#2", "man#1"], ["man#1", "hat"])
    check_numbers(["route#66"], ["man"])


def test_a_number_counts_where_concepts_or_layout_have_it() -> None:
    lines = ["red hat#1", "blue hat#2"]
    check_numbers(lines, ["red hat", "blue hat"], ["hat#1", "hat#2"])
    with pytest.raises(ValueError, match="number 2 of 'blue hat'"):
        check_numbers(lines, ["red hat", "blue hat"], ["scarf"])
    assert numbers_as_text(read_lines(["a (cap:1.2)#5"], ["man"])) == ["cap:1.2)#5"]


def test_what_goes_back_is_the_area_and_a_soft_edge() -> None:
    mask = torch.zeros(64, 96)
    mask[20:40, 30:50] = 1
    crop = Crop(Box.between(10, 0, 74, 64), (64, 96))
    share = soft_area(mask, crop, 0.05)[0]
    pixels = round(0.05 * 64)
    inside = mask[:, 10:74] > 0.5
    assert float(share[inside].min()) > 0.95
    reach = int(2.5 * pixels) + 1
    assert not share[20 - reach].any() and not share[:, 20 - reach].any()
    assert share[20 - pixels - 1, 30] > 0
    assert torch.equal(soft_area(mask, crop, 0.0)[0], inside.float())
    # Where the cut-out ends inside the picture it is soft too, at the picture's border it is not.
    whole = soft_area(torch.ones(64, 96), crop, 0.1)[0]
    assert (
        float(whole[32, 0]) < 0.05 and float(whole[32, 32]) > 0.999 and float(whole[0, 32]) > 0.99
    )


def test_a_box_is_a_rectangle_of_a_pixel_at_least() -> None:
    mask = rectangle(Box(2.4, 3.2, 5, 2), (8, 10))
    assert mask is not None
    assert mask[3:5, 2:7].all() and int(mask.sum()) == 10
    small = rectangle(Box(9.9, 7.9, 0.05, 0.05), (8, 10))
    assert small is not None and int(small.sum()) == 1
    assert rectangle(Box(20, 0, 4, 4), (8, 10)) is None


def test_a_painted_region_is_cut_like_the_picture() -> None:
    region = torch.zeros(1, 32, 48)
    region[:, 10:20, 15:25] = 1
    part = target_in(region, 0, (64, 96), Box.between(20, 10, 60, 50))
    assert part is not None and part.shape == (1, 40, 40)
    assert float(part[0, 20, 20]) == 1 and float(part[0, 2, 2]) == 0
    assert target_in(region, 0, (64, 96), Box.between(60, 0, 90, 30)) is None
    batch = torch.cat([torch.zeros_like(region), region])
    assert target_in(batch, 0, (64, 96), Box.between(20, 10, 60, 50)) is None
    assert target_in(batch, 1, (64, 96), Box.between(20, 10, 60, 50)) is not None
