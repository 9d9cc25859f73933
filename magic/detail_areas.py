"""The areas of a picture that are drawn anew, each by a text of its own: which text is for which
area, which concept for which text, and how an area goes back."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .boxes import Box, box_of_mask
from .mask_shapes import feather, grow
from .messages import shown
from .phrases import (
    OCCURRENCE,
    named_words,
    numbered,
    places_in_text,
    share_places,
    words_of,
)
from .pictures import resized_masks
from .portrait_crop import Crop, cut, rim


def lines_of(text: str) -> list[str]:
    """The lines of a text that have something in them. ValueError when there is none."""
    lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
    if not lines:
        raise ValueError(
            "text is empty: write what the areas show, one line for all of them or one for each,"
            " such as 'a woman wearing a hat'"
        )
    return lines


_Text = TypeVar("_Text")


def texts_of_areas(lines: Sequence[_Text], areas: int, picture: int) -> list[_Text]:
    """The text of each area of a picture: one line is for all of them, several are for one each.

    picture: its number from 1, for the message. ValueError when there is another number of areas,
    of which nobody knows who is who; none at all are no fault.
    """
    if len(lines) == 1:
        return [lines[0]] * areas
    if areas not in (0, len(lines)):
        raise ValueError(
            f"text has {len(lines)} lines, but picture {picture} has {areas} areas: write one line"
            " for all areas, or one for each from left to right"
        )
    return list(lines[:areas])


@dataclass(frozen=True)
class Line:
    """A line of text as a prompt of its own. text: without the numbers of occurrences; named: the
    phrases that it names, by their indices, each with what names it in this text alone: 'man' for
    'man#2', where there is but one."""

    text: str
    named: Mapping[int, str]


class _Place(NamedTuple):
    """Where words stand. line: of the text; characters: of the words, counted over all lines;
    number: what is written behind them as an occurrence, or None."""

    line: int
    characters: tuple[int, ...]
    number: int | None


def read_lines(lines: Sequence[str], phrases: Sequence[str]) -> list[Line]:
    """Which lines name which phrases.

    The lines are read one after the other, as one prompt: 'man#2' is the second 'man' of them all,
    and of phrases that are the same the first has the first place. Where such numbers are written
    behind the words of a phrase ('man#2 with a scarf'), these count instead, and are no part of the
    text; the same words without one have the numbers that are written nowhere, in their order. A
    longer phrase has what is inside of it, unless the shorter one stands nowhere else.
    """
    names = [numbered(phrase) or (phrase, None) for phrase in phrases]
    words = [tuple(words_of(name.casefold())) for name, _ in names]
    numbers = _with_twins_numbered(words, [number for _, number in names])
    texts, written = _without_numbers(lines, words)
    places = {key: _places(key, texts, written) for key in dict.fromkeys(words)}
    shared = share_places(
        words,
        {key: [place.characters for place in own] for key, own in places.items()},
        [number for _, number in names],
    )
    named: list[dict[int, str]] = [{} for _ in texts]
    for i, (key, number, characters) in enumerate(zip(words, numbers, shared, strict=True)):
        own = [place for place in places[key] if set(place.characters) <= {*characters}]
        if any(place.number is not None for place in places[key]):
            taken = {n for other, n in zip(words, numbers, strict=True) if other == key}
            own = [
                place
                for place in places[key]
                if (place.number == number if number is not None else place.number not in taken)
            ]
        for place in own:
            here = [other for other in places[key] if other.line == place.line]
            mine = [other for other in own if other.line == place.line]
            name = phrases[i]
            if number is not None:
                name, _ = names[i]
                name = name if mine == here else f"{name}#{here.index(mine[0]) + 1}"
            named[place.line][i] = name
    return [Line(text, own) for text, own in zip(texts, named, strict=True)]


def _with_twins_numbered(
    words: Sequence[tuple[str, ...]], numbers: Sequence[int | None]
) -> list[int | None]:
    """The numbers of phrases, with those of phrases that are there more than once without one."""
    given = list(numbers)
    for i, key in enumerate(words):
        twins = [j for j, other in enumerate(words) if other == key and numbers[j] is None]
        if numbers[i] is None and len(twins) > 1:
            taken = {given[j] for j, other in enumerate(words) if other == key}
            given[i] = next(n for n in range(1, len(words) + 2) if n not in taken)
    return given


_NUMBER_BEHIND = re.compile(rf"{OCCURRENCE}(?!\w)")


def _without_numbers(
    lines: Sequence[str], phrases: Collection[tuple[str, ...]]
) -> tuple[list[str], dict[tuple[int, int], int]]:
    """The lines without the numbers that stand behind the words of phrases; and these, by line and
    place in what is left of it."""
    texts: list[str] = []
    written: dict[tuple[int, int], int] = {}
    for i, line in enumerate(lines):
        ends = {place[-1][1] for words in phrases for place in places_in_text(words, line)}
        text, last = "", 0
        for end in sorted(ends):
            if match := _NUMBER_BEHIND.match(line, end):
                text, last = text + line[last:end], match.end()
                written[i, len(text)] = int(match[1])
        texts.append(text + line[last:])
    return texts, written


def _places(
    words: tuple[str, ...], texts: Sequence[str], written: Mapping[tuple[int, int], int]
) -> list[_Place]:
    """All places of some words."""
    places: list[_Place] = []
    before = 0
    for i, text in enumerate(texts):
        for place in places_in_text(words, text):
            characters = tuple(before + at for first, end in place for at in range(first, end))
            places.append(_Place(i, characters, written.get((i, place[-1][1]))))
        before += len(text)
    given = {place.number for place in places} - {None}
    if not given:
        return places
    free = iter(n for n in range(1, len(places) + len(given) + 1) if n not in given)
    return [
        place if place.number is not None else place._replace(number=next(free)) for place in places
    ]


def check_numbers(lines: Sequence[str], phrases: Sequence[str]) -> None:
    """ValueError for a number behind the words of a phrase of which nothing has that: neither a
    phrase, nor one of all places of the words. lines: as they were written; phrases: all that
    lines may name."""
    named = [named_words(phrase) for phrase in phrases]
    for words in dict.fromkeys(words for words, _ in named):
        key = tuple(words_of(words))
        texts, written = _without_numbers(lines, [key])
        count = len(_places(key, texts, {}))
        numbers = {number for other, number in named if other == words}
        for (line, _), here in written.items():
            if here not in numbers and not 0 < here <= count:
                how_often = "once" if count == 1 else f"{count} times"
                raise ValueError(
                    f"the line '{shown(lines[line])}' of text has number {here} of"
                    f" '{shown(words)}', which stands there {how_often}: write a number from 1 to"
                    f" {count}, or that of a phrase"
                )
    for phrase, (words, number) in zip(phrases, named, strict=True):
        if number == 0:
            raise ValueError(
                f"phrase '{shown(phrase)}' names no '{shown(words)}': occurrences count from 1"
            )


def numbers_as_text(lines: Sequence[Line]) -> list[str]:
    """What looks like the number of an occurrence and is left in the texts of lines: 'cap#5'."""
    return [match[0] for line in lines for match in _LOOKS_NUMBERED.finditer(line.text)]


_LOOKS_NUMBERED = re.compile(rf"[^\W\d_]+{OCCURRENCE}(?!\w)")


def check_named(lines: Sequence[str], read: Sequence[Line], phrases: Sequence[str]) -> None:
    """ValueError for a line that names no phrase of a layout. lines: as they were written."""
    for line, own in zip(lines, read, strict=True):
        if not own.named:
            raise ValueError(
                f"the line '{shown(line)}' of text names no phrase of the layout"
                f" ({', '.join(map(shown, phrases))}): write the phrase of the part that it is for"
                " into it"
            )


def rectangle(box: Box, size: tuple[int, int]) -> Tensor | None:
    """A box as a mask of `size` (rows, columns), H W of 0 and 1, one pixel at least; None when it
    is outside."""
    inside = box.clipped(size)
    if inside is None:
        return None
    mask = torch.zeros(size)
    left, top, right, bottom = inside.corners
    rows, columns = (
        slice(min(int(first), length - 1), max(round(last), min(int(first), length - 1) + 1))
        for first, last, length in ((top, bottom, size[0]), (left, right, size[1]))
    )
    mask[rows, columns] = 1
    return mask


def soft_area(mask: Tensor, crop: Crop, share: float) -> Tensor:
    """What of a cut-out goes back: 1 on the area, falling to 0 outside of it, and to 0 where the
    cut-out ends inside the picture.

    mask: H W in 0..1, in the picture; share: width of the soft edge, as a share of the cut-out's
    shorter side. -> 1 h w, exactly 0 from two and a half widths on.
    """
    inside = (cut(mask[None, None].float(), crop.box)[0] > 0.5).float()
    pixels = round(share * min(inside.shape[-2:]))
    if not pixels:
        return inside
    return feather(grow(inside, pixels), pixels) * rim(crop, share)


def target_in(region: Tensor, picture: int, size: tuple[int, int], box: Box) -> Tensor | None:
    """What a region painted on the whole picture is in a cut-out: 1 h w, None when it is not there.

    region: B H W of any size, one for all or one for each picture; size: rows and columns of the
    pictures.
    """
    own = region[picture if len(region) > 1 else 0]
    part: Tensor = cut(resized_masks(own[None], size)[None], box)[0]
    return None if box_of_mask(part[0]) is None else part
