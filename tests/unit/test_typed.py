"""What users type, in any script."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest

from magicportrait.magic.phrases import places_in_text
from magicportrait.magic.typed import SPACED_LETTER, ascii_marks, in_small_letters, unseen_in

UNSPACED = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA", "HANGUL")
UNSPACED_TOO = ("HALFWIDTH KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "IDEOGRAPHIC ITER")
SPACED = ("LATIN", "GREEK", "CYRILLIC", "ARABIC LETTER", "HEBREW", "DEVANAGARI", "FULLWIDTH LATIN")


def test_every_letter_of_a_script_without_spaces_is_one() -> None:
    spaced = re.compile(SPACED_LETTER)
    wrong = []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if not character.isalnum():
            continue
        name = unicodedata.name(character, "")
        if name.startswith((*UNSPACED, *UNSPACED_TOO)) and spaced.match(character):
            wrong.append(name)
        if name.startswith(SPACED) and not spaced.match(character):
            wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("text", ["人々man", "\U00020000man", "ﾋﾄman", "man의"])
def test_words_stand_beside_such_letters(text: str) -> None:
    assert len(places_in_text(["man"], text)) == 1


def test_marks_and_digits_of_keyboards_are_those_of_ascii() -> None:
    assert ascii_marks("ｄ１－３、ｍ０：１．５；\u00a0𝟏") == "d1-3,m0:1.5; 1"
    assert ascii_marks("4² ④ ½ Ⅳ") == "4² ④ ½ Ⅳ"


@pytest.mark.parametrize(
    ("text", "unseen"),
    [
        ("anna 安娜 café cafe\u0301 Ａ", ""),
        ("می\u200cخواهم", ""),
        ("👩\u200d🎤 ❤\ufe0f", ""),
        # Signs that are drawn as pictures and joined to others, a digit in a box, England's flag.
        ("❤\ufe0f\u200d🔥 🏳\ufe0f\u200d🌈 🕵\ufe0f\u200d♂\ufe0f 👨\u200d👩\u200d👧", ""),
        ("1\ufe0f\u20e3", ""),
        ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", ""),
        # Signs that stand before numbers, the form of an ideograph, a Mongolian letter's.
        ("آیه \u06dd۱ \u0600۲ \u0601 \U000110bd", ""),
        ("葛\U000e0100 ᠠ\u180b", ""),
        ("g\U000e0100", "U+E0100"),
        ("man\ufff0", "U+FFF0"),
        ("man\u2065", "U+2065"),
        ("❤\ufe0f\ufe0f", "U+FE0F"),
        ("a\ufe0f\u200d🔥", "U+FE0F"),
        ("1\ufe0f", "U+FE0F"),
        ("a\U000e0067", "U+E0067"),
        ("an\u200dna", "U+200D"),
        ("\u200canna", "U+200C"),
        ("人\u200d\u200d", "U+200D"),
        ("anna\u200f", "U+200F"),
        ("\ufeffanna", "U+FEFF"),
        ("\u3164", "U+3164"),
        ("a\u2028b", "U+2028"),
        ("soft\u00adhyphen", "U+00AD"),
    ],
)
def test_characters_that_nobody_sees_are_named(text: str, unseen: str) -> None:
    assert unseen_in(text) == unseen


def test_of_all_format_characters_only_signs_before_numbers_are_seen() -> None:
    formats = (chr(code) for code in range(sys.maxunicode + 1))
    seen = {
        unicodedata.name(character)
        for character in formats
        if unicodedata.category(character) == "Cf" and not unseen_in(character)
    }
    # Unicode's property Prepended_Concatenation_Mark; the last two since Unicode 14.
    assert len(seen) in (11, 13)
    assert all(re.search("NUMBER|SIGN|MARK|END OF AYAH|ABOVE", name) for name in seen), seen


def test_small_letters_are_found_in_any_case() -> None:
    assert in_small_letters("WEISSE Weiße") == "weisse weiße"
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if character != character.casefold():
            small = in_small_letters(character)
            assert len(small) == 1
            assert re.match(re.escape(small), character, re.IGNORECASE), character
