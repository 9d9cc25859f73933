"""Texts as users type them."""

from __future__ import annotations

import unicodedata

_KEYBOARDS = ("<wide>", "<narrow>", "<small>", "<vertical>", "<font>", "<noBreak>")
"""How Unicode says that a character is another one as some keyboards write it. What else it takes
apart means something else: '4²' is not 42, nor is '④' a number."""


def _characters(*ranges: tuple[int, int]) -> frozenset[str]:
    return frozenset(chr(code) for first, last in ranges for code in range(first, last + 1))


_JOINERS = frozenset("\u200c\u200d\u180f") | _characters(
    (0x180B, 0x180D), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF)
)
"""Between the letters of some scripts, in emoji, and what chooses the form of a letter."""
_BLANK = (
    frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0\U00013440")
    | _JOINERS
    | _characters((0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF))
)
"""Characters without a look that Unicode counts as letters, marks, signs, or nothing yet."""
_NUMBER_SIGNS = frozenset("\u06dd\u070f\u08e2\U000110bd\U000110cd") | _characters(
    (0x600, 0x605), (0x890, 0x891)
)
"""Signs before numbers, as in Arabic, which Unicode counts as format characters and one sees."""


UNSPACED = (
    r"\u0e00-\u0eff"  # Thai, Lao
    r"\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    r"\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff"  # Korean
    r"\u1780-\u17ff"  # Khmer
    r"\u2e80-\u9fff\uf900-\ufaff\uff66-\uffdc"  # Chinese, Japanese, and Korean of half width
    r"\U0001aff0-\U0001b16f\U00020000-\U0003ffff"  # rare kana and ideographs
)
"""Characters of scripts that put no spaces between words, or whose words are extended by particles,
as Korean ones are: ranges for the brackets of a regular expression."""
SPACED_LETTER = rf"[^\W{UNSPACED}]"
"""A regular expression for a letter or digit of all other scripts: beside such a one a word is a
part of a longer one."""


def ascii_marks(text: str) -> str:
    """A list of numbers or names as it is written with a keyboard of any script, with the marks,
    digits and letters of ASCII: '0：3，0.5：1' is '0:3,0.5:1'."""
    plain = "".join(
        unicodedata.normalize("NFKC", character)
        if unicodedata.decomposition(character).startswith(_KEYBOARDS)
        else character
        for character in text
    )
    return plain.replace("、", ",")


def number_in(text: str) -> float:
    """A number as people write it. ValueError for anything else: Python's own takes '4_0' for 40,
    too."""
    if "_" in text:
        raise ValueError(f"'{text}' is no number")
    return float(text)


def in_small_letters(text: str) -> str:
    """A text in small letters, each for one of its own, so that it is found in it again in any
    case: `casefold` makes two of 'ß', and a pattern finds them nowhere."""
    return "".join(
        next((small for small in (own.casefold(), own.lower()) if len(small) == 1), own)
        for own in text
    )


_PICTURED, _BOXED, _JOINER = "\ufe0f", "\u20e3", "\u200d"
_FLAG, _FLAG_LETTERS = "\U0001f3f4", frozenset(map(chr, range(0xE0020, 0xE0080)))


def unseen_in(text: str) -> str:
    """The code of the first character of a text that nobody sees, such as 'U+200B' (a blank without
    width) or 'U+200F' (from right to left); empty when there is none. What joins the letters of a
    script, or the parts of an emoji, may stand behind one of them."""
    for i, character in enumerate(text):
        if _is_unseen(character) and not _is_joined(text, i):
            return f"U+{ord(character):04X}"
    return ""


def _is_unseen(character: str) -> bool:
    is_format = unicodedata.category(character) in ("Cf", "Zl", "Zp")
    return character in _BLANK or (is_format and character not in _NUMBER_SIGNS)


def _is_joined(text: str, i: int) -> bool:
    """Whether a character that nobody sees is a part of one before it that one sees."""
    character, before = text[i], text[i - 1 : i] if i else ""
    if character in _FLAG_LETTERS:
        # Of a country without a flag of its own: a black one and its name.
        return text[:i].rstrip("".join(_FLAG_LETTERS)).endswith(_FLAG)
    if character == _PICTURED and text[i + 1 : i + 2] == _BOXED:
        return before in {*"0123456789#*"}
    if character not in _JOINERS:
        return False
    if before == _PICTURED:
        # As in a heart on fire: a sign that is drawn as a picture, and another.
        return character == _JOINER and _is_joined(text, i - 1)
    # None is before the first, and counts as ASCII.
    return not before.isascii() and not _is_unseen(before)
