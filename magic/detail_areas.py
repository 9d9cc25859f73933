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
    CLOSING,
    OCCURRENCE,
    hint_of_number,
    numbered,
    places_in_text,
    share_places,
    words_of,
)
from .pictures import resized_masks
from .portrait_crop import Crop, cut, rim
from .typed import SPACED_LETTER, in_small_letters


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
    number: what is written behind them as an occurrence, or None; is_of_longer: whether what is
    written there is the number of a longer phrase."""

    line: int
    characters: tuple[int, ...]
    number: int | None
    is_of_longer: bool = False


def read_lines(lines: Sequence[str], phrases: Sequence[str]) -> list[Line]:
    """Which lines name which phrases.

    The lines are read one after the other, as one prompt: 'man#2' is the second 'man' of them all,
    and of phrases that are the same the first has the first place. Where such numbers are written
    behind the words of a phrase ('man#2 with a scarf'), these count instead, and are no part of the
    text; the same words without one have the numbers that are written nowhere, in their order. A
    longer phrase has what is inside of it, unless the shorter one stands nowhere else; a number
    behind both is the longer one's.
    """
    names = [numbered(phrase) or (phrase, None) for phrase in phrases]
    keys = [_words_to_find(name) for name, _ in names]
    numbers = _with_twins_numbered(keys, [number for _, number in names])
    texts, marks = _without_numbers(lines, keys)
    places = {key: _places(key, texts, marks) for key in dict.fromkeys(keys)}
    free = {
        key: [place for place in own if not place.is_of_longer] or own
        for key, own in places.items()
    }
    shared = share_places(
        keys,
        {key: [place.characters for place in own] for key, own in free.items()},
        [number for _, number in names],
    )
    named: list[dict[int, str]] = [{} for _ in texts]
    characters: dict[str, set[int]] = {}
    # The longest first: shorter ones do not have what is inside of theirs.
    for i in sorted(range(len(keys)), key=lambda i: -len(keys[i])):
        key, number = keys[i], numbers[i]
        own = [place for place in free[key] if set(place.characters) <= {*shared[i]}]
        if any(place.number is not None for place in free[key]):
            others = {n for other, n in zip(keys, numbers, strict=True) if other == key}
            own = [
                place
                for place in free[key]
                if (place.number == number if number is not None else place.number not in others)
            ]
            if number is None:
                longer = {
                    at for other, of in characters.items() if len(other) > len(key) for at in of
                }
                own = [place for place in own if longer.isdisjoint(place.characters)] or own
        characters.setdefault(key, set()).update(at for place in own for at in place.characters)
        for place in own:
            here = [other for other in places[key] if other.line == place.line]
            mine = [other for other in own if other.line == place.line]
            name = phrases[i]
            if number is not None:
                name, _ = names[i]
                name = name if mine == here else f"{name}#{here.index(mine[0]) + 1}"
            named[place.line][i] = name
    return [Line(text, dict(sorted(own.items()))) for text, own in zip(texts, named, strict=True)]


def _words_to_find(name: str) -> str:
    """The words of a phrase as they are found in any case."""
    return in_small_letters(" ".join(words_of(name)))


def _with_twins_numbered(keys: Sequence[str], numbers: Sequence[int | None]) -> list[int | None]:
    """The numbers of phrases, with those of phrases that are there more than once without one."""
    out = list(numbers)
    for i, key in enumerate(keys):
        twins = [j for j, other in enumerate(keys) if other == key and numbers[j] is None]
        if numbers[i] is None and len(twins) > 1:
            others = {out[j] for j, other in enumerate(keys) if other == key}
            out[i] = next(n for n in range(1, len(keys) + 2) if n not in others)
    return out


_NUMBER_BEHIND = re.compile(rf"({CLOSING}){OCCURRENCE}(?!{SPACED_LETTER})")


class _Number(NamedTuple):
    """A number that is written behind words. key: the longest phrase that ends there; at: where it
    stands in its line."""

    value: int
    key: str
    at: int


def _without_numbers(
    lines: Sequence[str], keys: Collection[str]
) -> tuple[list[str], dict[tuple[int, int], _Number]]:
    """The lines without the numbers that stand behind the words of phrases; and these, by line and
    place in what is left of it."""
    texts: list[str] = []
    marks: dict[tuple[int, int], _Number] = {}
    for i, line in enumerate(lines):
        longest: dict[int, str] = {}
        for key in sorted(keys, key=len):
            longest |= {place[-1][1]: key for place in places_in_text(key.split(), line)}
        text, last = "", 0
        for end in sorted(longest):
            if match := _NUMBER_BEHIND.match(line, end):
                text += line[last:end]
                marks[i, len(text)] = _Number(int(match[2]), longest[end], end)
                text, last = text + match[1], match.end()
        texts.append(text + line[last:])
    return texts, marks


def _places(
    key: str, texts: Sequence[str], marks: Mapping[tuple[int, int], _Number]
) -> list[_Place]:
    """All places of some words. Where some are numbered, the others have the numbers that are left,
    in their order."""
    places: list[_Place] = []
    before = 0
    for i, text in enumerate(texts):
        for place in places_in_text(key.split(), text):
            characters = tuple(before + at for first, end in place for at in range(first, end))
            number = marks.get((i, place[-1][1]))
            if number is None or number.key == key:
                places.append(_Place(i, characters, None if number is None else number.value))
            else:
                places.append(_Place(i, characters, None, is_of_longer=True))
        before += len(text)
    numbers = {place.number for place in places} - {None}
    if not numbers:
        return places
    free = iter(n for n in range(1, len(places) + len(numbers) + 1) if n not in numbers)
    return [
        place
        if place.number is not None or place.is_of_longer
        else place._replace(number=next(free))
        for place in places
    ]


def check_numbers(lines: Sequence[str], *phrases: Sequence[str]) -> None:
    """ValueError for a number behind the words of a phrase of which nothing has that: neither a
    phrase, nor one of all places of the words. lines: as they were written; phrases: all that
    lines may name, those that are read together in one list."""
    complaints: dict[tuple[int, int], str | None] = {}
    for read_together in phrases:
        names = [numbered(phrase) or (phrase, None) for phrase in read_together]
        named = [(_words_to_find(name), number) for name, number in names]
        for phrase, (words, number) in zip(read_together, named, strict=True):
            if number == 0:
                raise ValueError(
                    f"phrase '{shown(phrase)}' names no '{shown(words)}': occurrences count from 1"
                )
        texts, marks = _without_numbers(lines, {words for words, _ in named})
        for (line, _), mark in marks.items():
            count = len(_places(mark.key, texts, {}))
            numbers = {own for words, own in named if words == mark.key}
            complaint = None
            if mark.value not in numbers and not 0 < mark.value <= count:
                how_often, what = "once", "no number"
                if count > 1:
                    how_often, what = f"{count} times", f"a number from 1 to {count}"
                complaint = (
                    f"the line '{shown(lines[line])}' of text has number {mark.value} of"
                    f" '{shown(mark.key)}', which stands there {how_often}: write {what}, or that"
                    " of a phrase"
                )
            # One list that has it is enough.
            key = (line, mark.at)
            complaints[key] = complaints.get(key, complaint) and complaint
    for complaint in complaints.values():
        if complaint is not None:
            raise ValueError(complaint)


def check_concepts(lines: Sequence[str], read: Sequence[Line], phrases: Sequence[str]) -> None:
    """ValueError for the phrase of a concept that no line names. lines: as they were written."""
    for i, phrase in enumerate(phrases):
        if any(i in line.named for line in read):
            continue
        words, _ = numbered(phrase) or (phrase, None)
        count = len(_places(_words_to_find(words), *_without_numbers(lines, [words])))
        hint = hint_of_number(phrase)
        if count:
            hint = f". '{shown(words)}' stands there {'once' if count == 1 else f'{count} times'}"
        raise ValueError(
            f"no line of text has the concept '{shown(phrase)}' in it: write the phrase where it"
            f" belongs, or leave the concept out{hint}"
        )


def numbers_as_text(lines: Sequence[Line]) -> list[str]:
    """What looks like the number of an occurrence and is left in the texts of lines: 'cap#5',
    'man#x'."""
    return [match[0] for line in lines for match in _LOOKS_NUMBERED.finditer(line.text)]


_LOOKS_NUMBERED = re.compile(rf"[^\W\d_]+{CLOSING}(?:{OCCURRENCE}(?!{SPACED_LETTER})|[#＃]-?\w+)")


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
