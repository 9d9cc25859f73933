"""Fonts that together show every script: PIL's own, the pack's, then what the system has."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_OF_THE_PACK = Path(__file__).parent / "font" / "wqy_microhei_subset.ttf"
_OF_SYSTEMS = (
    # Many scripts.
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "arial.ttf", "tahoma.ttf"),
    *("Arial Unicode.ttf", "ARIALUNI.TTF", "FreeSans.ttf", "unifont.ttf", "unifont.otf"),
    # Arabic and Hebrew.
    *("NotoSansArabic-Regular.ttf", "NotoNaskhArabic-Regular.ttf", "GeezaPro.ttc"),
    *("NotoSansHebrew-Regular.ttf", "SFHebrew.ttf"),
    # India, Thailand and their neighbours.
    *("NotoSansDevanagari-Regular.ttf", "Nirmala.ttf", "Nirmala.ttc", "Kohinoor.ttc"),
    *("NotoSansBengali-Regular.ttf", "NotoSansTamil-Regular.ttf", "Lohit-Devanagari.ttf"),
    *("NotoSansThai-Regular.ttf", "LeelawUI.ttf", "Thonburi.ttc", "Loma.ttf"),
    # Signs.
    *("seguisym.ttf", "NotoSansSymbols2-Regular.ttf", "NotoEmoji-Regular.ttf", "Symbola.ttf"),
    *("Apple Symbols.ttf",),
)
"""Where PIL looks for fonts by their files' names."""
_NEVER_A_CHARACTER = "\U0010ffff"


class Fonts:
    """Fonts of one height, in pixels. Each is opened, and each character looked up, when it is
    needed for the first time."""

    def __init__(self, height: int):
        self.plain: Font = ImageFont.load_default(height)
        """PIL's own, which has ASCII."""
        self._height = height
        self._open: list[Font] = [self.plain]
        self._names = iter((str(_OF_THE_PACK), *_OF_SYSTEMS))
        self._known: dict[tuple[Font, str], bool] = {}

    def __iter__(self) -> Iterator[Font]:
        yield from self._open
        for name in self._names:
            # PIL may have been built without FreeType, and no system has all of these.
            with contextlib.suppress(OSError, ImportError):
                self._open.append(ImageFont.truetype(name, self._height))
                yield self._open[-1]

    def of(self, text: str) -> Font | None:
        """The first font that shows all of a text, None when there is none."""
        return next((font for font in self if self._shows(font, text)), None)

    def _shows(self, font: Font, text: str) -> bool:
        for character in text:
            if (font, character) not in self._known:
                self._known[font, character] = _shows(font, character)
        return all(self._known[font, character] for character in text)


def visible(text: str) -> str:
    """Text without what only steers how others are drawn, and with spaces for control characters
    but the ends of lines."""
    return "".join(
        " " if unicodedata.category(character) == "Cc" and character != "\n" else character
        for character in unicodedata.normalize("NFC", text)
        if unicodedata.category(character) != "Cf" and not _selects_a_variant(character)
    )


def spelled_out(character: str) -> str:
    """What stands for a character that no font shows, such as '\\u0e01'."""
    return character.encode("unicode_escape").decode("ascii")


def _selects_a_variant(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f"


def _shows(font: Font, character: str) -> bool:
    """Whether a font has a character: else it draws what it draws for one that cannot be."""
    if character.isspace():
        return True
    try:
        glyph, missing = font.getmask(character), font.getmask(_NEVER_A_CHARACTER)
    # A font of ASCII only refuses the others.
    except UnicodeEncodeError:
        return character.isascii()
    return (glyph.size, bytes(glyph)) != (missing.size, bytes(missing))
