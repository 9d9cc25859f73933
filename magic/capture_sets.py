"""What MagiCapture learns from: a handful of pictures with face masks, the placeholder that stands
for them, and the prompts."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .messages import shown
from .pictures import as_rgb, check_aspect, check_mask_count, check_painted, check_size
from .typed import SPACED_LETTER, unseen_in

PERSON, STYLE = "{person}", "{style}"
_PLACEHOLDER = re.compile(r"[^\s(),:{}\\]+")
_SMALLEST_SIDE = 16
"""Pixels of a picture to learn from: two cells of most latents."""


@dataclass(frozen=True, eq=False)
class CapturePicture:
    """A training picture. name: how messages call it; image: H W 3 in 0..1; mask: H W in 0..1, the
    face; caption: what is on it, in place of the templates; empty for these."""

    name: str
    image: Tensor
    mask: Tensor
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Subject:
    """A person to learn.

    pictures: what shows the person; placeholder: the new word that will mean them; class_word: what
    is in the pictures, in a word that the model knows; templates: training prompts, each with
    {person} in it once, which becomes '<placeholder> <class word>', such as 'sks woman'.
    class_pictures: of others of that class, so that the class word keeps its meaning (prior); none
    where it may change. class_weight: how much they count, 0 or more. before: other subjects that
    are learned with it, in a chain.
    """

    pictures: tuple[CapturePicture, ...]
    placeholder: str
    class_word: str
    templates: tuple[str, ...]
    class_pictures: tuple[CapturePicture, ...] = ()
    class_weight: float = 1.0
    before: tuple[Subject, ...] = ()

    def __post_init__(self) -> None:
        check_placeholder(self.placeholder)
        check_templates(self.templates, (PERSON,))
        check_unused(self.placeholder, self.class_word, self.templates)
        for picture in self.pictures:
            self.prompts_of(picture)

    @property
    def all(self) -> tuple[Subject, ...]:
        """Those before it, and itself."""
        return (*self.before, self)

    def prompt(self, template: int) -> str:
        return self._filled(self.templates[template])

    @property
    def class_prompts(self) -> tuple[str, ...]:
        """What may be said of others of the class."""
        return tuple(each.replace(PERSON, self.class_word) for each in self.templates)

    def prompts_of(self, picture: CapturePicture) -> tuple[str, ...]:
        """What may be said of a picture: its caption, or any of the templates."""
        if not picture.caption.strip():
            return tuple(map(self._filled, self.templates))
        words = {PERSON: (self.person, self.placeholder)}
        return (self._filled(caption_template(picture, words, self.placeholder)),)

    def _filled(self, template: str) -> str:
        return template.replace(PERSON, self.person)

    @property
    def person(self) -> str:
        return f"{self.placeholder} {self.class_word}"


@dataclass(frozen=True, eq=False)
class StyleSet:
    """A style to learn, shown on other people.

    pictures: what shows the style; placeholder: the new word that will mean it; class_word: who is
    in the pictures, in a word that the model knows; templates: training prompts, each with {person}
    and {style} in it once. {person} becomes the class word in the style's own prompts, the subject
    in composed ones.
    """

    pictures: tuple[CapturePicture, ...]
    placeholder: str
    class_word: str
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        check_placeholder(self.placeholder)
        check_templates(self.templates, (PERSON, STYLE))
        check_unused(self.placeholder, self.class_word, self.templates)
        for picture in self.pictures:
            self.prompts_of(picture)

    def prompt(self, template: int, person: str | None = None) -> str:
        return self._filled(self.templates[template], person)

    def prompts_of(self, picture: CapturePicture, person: str | None = None) -> tuple[str, ...]:
        """What may be said of a picture: its caption, or any of the templates. person: who is said
        to be on it, None for the class word."""
        if not picture.caption.strip():
            return tuple(self._filled(template, person) for template in self.templates)
        words = {STYLE: (self.placeholder,), PERSON: (self.class_word,)}
        template = caption_template(picture, words, self.placeholder)
        return (self._filled(template, person),)

    def _filled(self, template: str, person: str | None) -> str:
        return template.replace(PERSON, person or self.class_word).replace(STYLE, self.placeholder)


def caption_template(
    picture: CapturePicture, words: Mapping[str, Sequence[str]], placeholder: str
) -> str:
    """A picture's caption as a template. words: for each slot what stands for it where it is
    written out, 'sks woman' for {person}. Slots that it has neither way are put to its ends:
    '{person}, in a garden, in the style of {style}'. ValueError, with the picture's name, when it
    has a slot twice, or the placeholder beside it."""
    text = " ".join(picture.caption.split())
    for slot, ways in words.items():
        for way in ways:
            if slot not in text:
                text = re.sub(word_pattern(way), slot, text, count=1, flags=re.IGNORECASE)
    if PERSON in words and PERSON not in text:
        text = f"{PERSON}, {text}"
    if STYLE in words and STYLE not in text:
        text = f"{text}, in the style of {STYLE}"
    try:
        check_templates((text,), tuple(words))
        check_unused(placeholder, "", (text,))
    except ValueError as error:
        raise ValueError(f"caption of {picture.name}: {error}") from error
    return text


def check_sets(subject: Subject, style: StyleSet | None) -> None:
    """ValueError unless the words of the style, of the subject and of those before it can be told
    apart in every prompt."""
    named: list[tuple[str, Subject | StyleSet]] = [("subject", each) for each in subject.all]
    if style is not None:
        named.append(("style", style))
    for (kind, one), (other_kind, other) in itertools.combinations(named, 2):
        if word_key(one.placeholder) == word_key(other.placeholder):
            who = "two subjects" if kind == other_kind else f"{kind} and {other_kind}"
            raise ValueError(
                f"{who} have the same placeholder '{one.placeholder}' (capital letters make no"
                " difference): give each its own"
            )
    for (kind, one), (other_kind, other) in itertools.permutations(named, 2):
        check_unused(one.placeholder, other.class_word, other.templates)
        if kind == other_kind and isinstance(other, Subject):
            _check_captions(one.placeholder, other)


def _check_captions(word: str, subject: Subject) -> None:
    """ValueError when a caption of a subject names another: a mask says where one of them is."""
    pattern = re.compile(word_pattern(word), re.IGNORECASE)
    for picture in subject.pictures:
        if pattern.search(picture.caption):
            raise ValueError(
                f"caption of {picture.name} has the placeholder '{word}' of another subject in it:"
                f" a picture is of one subject, '{subject.placeholder}' here. Write what the other"
                " one is instead"
            )


def word_key(word: str) -> str:
    """Equal for words that a text encoder reads alike: it does not tell capital letters, nor the
    two ways of writing an accent."""
    return unicodedata.normalize("NFC", word).lower()


def word_pattern(word: str) -> str:
    """A regular expression, to be used without regard to case, for a word that is no part of a
    longer one. What scripts without spaces between words have beside it is another word."""
    forms = {unicodedata.normalize(form, word) for form in ("NFC", "NFD")}
    own = "|".join(re.escape(form) for form in sorted(forms))
    return rf"(?<!{SPACED_LETTER})(?:{own})(?!{SPACED_LETTER})"


def check_unused(placeholder: str, class_word: str, templates: Sequence[str]) -> None:
    """ValueError when the class word or a template has the placeholder in it already."""
    word = re.compile(word_pattern(placeholder), re.IGNORECASE)
    advice = "take a word that prompts do not use, such as '<anna>'"
    if word.search(class_word):
        raise ValueError(
            f"placeholder '{placeholder}' is in the class word '{shown(class_word)}', which every"
            f" template puts beside it: {advice}"
        )
    for template in templates:
        if word.search(template.replace(PERSON, "").replace(STYLE, "")):
            raise ValueError(
                f"placeholder '{placeholder}' is a word of the template '{shown(template)}':"
                f" {advice}"
            )


def check_placeholder(placeholder: str) -> None:
    """ValueError unless it is one word without the signs that prompts use."""
    if not _PLACEHOLDER.fullmatch(placeholder):
        raise ValueError(
            f"placeholder '{shown(placeholder)}' must be one word without spaces, commas, colons"
            " and brackets, such as '<anna>'"
        )
    if unseen := unseen_in(placeholder):
        raise ValueError(
            f"placeholder '{shown(placeholder)}' has a character in it that nobody sees ({unseen}),"
            " and that prompts would need too: type it anew"
        )


def check_templates(templates: Sequence[str], slots: Sequence[str]) -> None:
    """ValueError unless there is a template and each has every slot exactly once."""
    if not templates:
        raise ValueError(
            f"no prompt template: write one a line, each with {' and '.join(slots)} in it"
        )
    for template in templates:
        for slot in slots:
            if template.count(slot) != 1:
                raise ValueError(
                    f"template '{shown(template)}' must have {slot} in it exactly once"
                )


def capture_pictures(
    images: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    names: Sequence[str],
    captions: Sequence[str] = (),
) -> tuple[CapturePicture, ...]:
    """Pictures of any size from H W C (1, 3 or 4 channels) and face masks H W of any size but the
    same aspect.

    Without masks the whole picture counts as face. One mask serves all pictures. captions: one for
    each picture, or none. ValueError names the picture.
    """
    if not images:
        raise ValueError("no pictures: connect images, or choose a folder")
    if masks:
        check_mask_count(len(masks), len(images))
    if captions and len(captions) != len(images):
        raise ValueError(
            f"{len(images)} pictures but {len(captions)} captions: write one a line for each, and"
            " an empty line for a picture without"
        )
    pictures = []
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        rgb = as_rgb(image, name)
        if not bool(rgb.isfinite().all()):
            raise ValueError(f"{name} has values in it that are no numbers: load it anew")
        check_size((rgb.shape[0], rgb.shape[1]), name, _SMALLEST_SIDE)
        mask = rgb.new_ones(rgb.shape[:2])
        if masks:
            mask = _fitted(masks[i if len(masks) > 1 else 0], rgb, name)
        pictures.append(CapturePicture(name, rgb, mask, captions[i] if captions else ""))
    return tuple(pictures)


def _fitted(mask: Tensor, image: Tensor, name: str) -> Tensor:
    owner, what_to_do = f"face mask of {name}", "paint over the face, or leave the picture out"
    check_painted(mask, 0.0, owner, what_to_do)
    size = (image.shape[0], image.shape[1])
    check_aspect(size, (mask.shape[0], mask.shape[1]), name)
    fitted = mask.float()
    if size != tuple(mask.shape):
        fitted = F.interpolate(fitted[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
    # What counts as face is above one half.
    check_painted(fitted, 0.5, owner, what_to_do)
    return fitted
