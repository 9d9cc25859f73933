"""Where the words of a prompt are in the context that a transformer is given.

Its tokenizers cut words by what stands around them (' hat' is another token than 'hat', characters
of a Chinese phrase go together with their neighbours), put templates around the prompt and pad it,
and its text encoders cut some of that off again. So a word is not looked for by its own tokens:
tokens are its own that change when it is exchanged for another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...magic.messages import shown
from ...magic.phrases import Token, comparable, places_in_text, share_places, words_of
from ...magic.typed import in_small_letters
from .chunks import (
    NamedPhrase,
    named_phrase,
    names_in_chunks,
    phrase_is_missing,
    spans_in_chunks,
    tokens_of,
)

_OTHERS = ("Q", "Z", "J", "7")
"""What words are exchanged for: the first that is no part of the word."""


@dataclass(frozen=True)
class WordPlaces:
    """Positions in the context. spans: for each phrase those of its tokens; words: of everything
    that the user wrote, without template, padding, start and end."""

    spans: tuple[tuple[int, ...], ...]
    words: tuple[int, ...]

    def shift(self, by: int) -> WordPlaces:
        """The same behind `by` other tokens."""
        spans = tuple(tuple(place + by for place in span) for span in self.spans)
        return WordPlaces(spans, tuple(place + by for place in self.words))


@dataclass(frozen=True)
class ContextTokens:
    """How the context of a kind of model is made of a prompt.

    tokens: which of the tokenizer's lists it is made of, None for its only one; has_clip: whether
    CLIP's chunks stand before these, each word a second time. Either may be missing, when its text
    encoder was not loaded. sees_pictures: whether the text encoder may have been shown pictures,
    whose tokens stand before the prompt's: a context that is longer than the prompt alone ends as
    the prompt does. behind: the list of another text encoder, whose tokens a layer has behind the
    context's, twice; either encoder may be missing. is_inside: whether the model makes the context
    inside, of the tokens of the list one by one.
    """

    tokens: str | None = None
    has_clip: bool = False
    sees_pictures: bool = False
    behind: str | None = None
    is_inside: bool = False

    @property
    def is_conditioning(self) -> bool:
        """Whether positions are those of the conditioning."""
        return self.behind is None and not self.is_inside

    def places(self, clip: Any, text: str, phrases: Sequence[str], context: int) -> WordPlaces:
        """Where phrases are in the context of `context` tokens. ValueError, with the words that are
        there, when one is not in the prompt, or the text encoder has no tokens for it."""
        if self.behind is not None:
            return self._places_of_both(clip, text, phrases, context)
        if self.is_inside:
            return self._places(clip, text, phrases, self.length(clip, text))
        if not self.has_clip:
            return self._places(clip, text, phrases, context)
        encoders, chunks = clip.cond_stage_model, 0
        of_encoders: list[WordPlaces] = []
        if any(getattr(encoders, name, None) is not None for name in ("clip_l", "clip_g")):
            chunks = sum(len(chunk) for chunk in clip.tokenize(text)["l"])
            spans = spans_in_chunks(clip, text, phrases)
            of_encoders.append(
                WordPlaces(spans, tuple(place for place, _ in tokens_of(clip, text)))
            )
        if getattr(encoders, str(self.tokens), None) is not None:
            of_encoders.append(self._places(clip, text, phrases, context - chunks).shift(chunks))
        return _join(of_encoders, len(phrases))

    def check(self, clip: Any, text: str, phrases: Sequence[str]) -> None:
        """ValueError as for `places`, of a prompt that is not encoded yet."""
        length = self.length(clip, text)
        chunks = clip.tokenize(text)["l"] if self.has_clip else ()
        self.places(clip, text, phrases, length + sum(map(len, chunks)))

    def _places_of_both(
        self, clip: Any, text: str, phrases: Sequence[str], context: int
    ) -> WordPlaces:
        encoders, of_encoders = clip.cond_stage_model, list[WordPlaces]()
        has_first, has_second = (
            getattr(encoders, str(name), None) is not None for name in (self.tokens, self.behind)
        )
        if has_second:
            second = ContextTokens(self.behind)
            length = second.length(clip, text)
            places = second.places(clip, text, phrases, length)
            of_encoders += [places.shift(context), places.shift(context + length)]
        if has_first:
            try:
                of_encoders.insert(0, self._places(clip, text, phrases, context))
            except ValueError:
                # The first encoder reads the beginning of a long prompt only, and no other writing
                # than Latin.
                if not has_second:
                    raise
        return _join(of_encoders, len(phrases))

    def _places(self, clip: Any, text: str, phrases: Sequence[str], context: int) -> WordPlaces:
        prompt = _Prompt(self, clip, text, context)
        names = _names(text, phrases)
        keys = [in_small_letters(" ".join(words_of(name.words))) for name in names]
        places = {key: prompt.places(key) for key in dict.fromkeys(keys)}
        for phrase, name, key in zip(phrases, names, keys, strict=True):
            if not places[key]:
                raise phrase_is_missing(phrase, name.words, text)
        spans = share_places(keys, places, [name.number for name in names])
        for phrase, span in zip(phrases, spans, strict=True):
            if not span or prompt.is_unknown(span):
                raise ValueError(
                    f"phrase '{shown(phrase)}' is nothing to this model: its text encoder has no"
                    " tokens for these characters. Write it, and the prompt, in English"
                )
        words = {*prompt.words, *(position for span in spans for position in span)}
        return WordPlaces(tuple(spans), tuple(sorted(words)))

    def names(self, clip: Any, text: str, phrases: Sequence[str]) -> tuple[NamedPhrase, ...]:
        """What phrases name in a prompt."""
        return names_in_chunks(clip, text, phrases) if self.has_clip else _names(text, phrases)

    def list_of(self, clip: Any, text: str) -> list[Token]:
        """The tokens of a text, template included, without padding at the end."""
        lists: dict[str, Any] = clip.tokenize(text)
        name = self.tokens or next(iter(lists))
        if name not in lists:
            raise ValueError(
                f"the text encoder that is connected has no '{name}', which this model reads: load"
                " the one of the model (for Flux: DualCLIPLoader, type flux)"
            )
        tokens = [token for chunk in lists[name] for token, *_ in chunk]
        pad = getattr(_tokenizer(clip, name), "pad_token", None)
        while tokens and isinstance(tokens[-1], int) and tokens[-1] == pad:
            tokens.pop()
        return tokens

    def length(self, clip: Any, text: str) -> int:
        """How many tokens there are, padding included."""
        lists: dict[str, Any] = clip.tokenize(text)
        return sum(len(chunk) for chunk in lists[self.tokens or next(iter(lists))])


def _join(parts: Sequence[WordPlaces], phrases: int) -> WordPlaces:
    """What several encoders have of the same phrases, one behind the other."""
    spans = tuple(
        tuple(place for places in parts for place in places.spans[i]) for i in range(phrases)
    )
    return WordPlaces(spans, tuple(place for places in parts for place in places.words))


def _names(text: str, phrases: Sequence[str]) -> tuple[NamedPhrase, ...]:
    return tuple(
        named_phrase(phrase, lambda words: len(places_in_text(words_of(words), text)))
        for phrase in phrases
    )


class _Prompt:
    """A prompt and its tokens. context: how many of them the model is given."""

    def __init__(self, kind: ContextTokens, clip: Any, text: str, context: int):
        self._kind, self._clip, self._text = kind, clip, text
        self._tokens = comparable(kind.list_of(clip, text))
        # Encoders cut off the head of their template; pictures before the prompt move it on.
        first = kind.length(clip, text) - context
        self._first = first if kind.sees_pictures else max(0, first)
        name = kind.tokens or next(iter(clip.tokenize(text)))
        inner = getattr(_tokenizer(clip, name), "tokenizer", None)
        self._unknown = getattr(inner, "unk_token_id", None)

    @property
    def words(self) -> tuple[int, ...]:
        """Positions of all that was written."""
        return tuple(self._changes(""))

    def places(self, phrase: str) -> list[tuple[int, ...]]:
        """Positions of a phrase's tokens, each time that it stands in the prompt."""
        return [
            tuple(
                sorted(
                    {
                        position
                        for start, end in words
                        for position in min(
                            (
                                self._changes(f"{self._text[:start]}{other}{self._text[end:]}")
                                for other in _others(phrase, self._text, start, end)
                            ),
                            key=len,
                        )
                    }
                )
            )
            for words in places_in_text(phrase.split(), self._text)
        ]

    def is_unknown(self, span: Sequence[int]) -> bool:
        """Whether the tokenizer knows nothing of these tokens."""
        return self._unknown is not None and all(
            self._tokens[position + self._first] == self._unknown for position in span
        )

    def _changes(self, text: str) -> list[int]:
        """Positions of the tokens that are others in another text."""
        own, other = self._tokens, comparable(self._kind.list_of(self._clip, text))
        most = min(len(own), len(other))
        head = next((i for i in range(most) if own[i] != other[i]), most)
        tail = next((i for i in range(most - head) if own[-1 - i] != other[-1 - i]), most - head)
        return [i - self._first for i in range(head, len(own) - tail) if i >= self._first]


def _others(phrase: str, text: str, start: int, end: int) -> Iterator[str]:
    """What a word of a phrase may be exchanged for."""
    other = next((other for other in _OTHERS if other.casefold() not in phrase), _OTHERS[0])
    yield other
    # With brackets of its own where it touches another: '<ink>' behind '<anna>' is a learned word,
    # behind 'Q' it is none.
    before, behind = (
        re.fullmatch(r"[^\w\s]{2}", text[max(0, edge - 1) : edge + 1]) for edge in (start, end)
    )
    if before or behind:
        yield f"{text[start] if before else ''}{other}{text[end - 1] if behind else ''}"
        # Letters go into one token with a comma before them, digits do not.
        yield _OTHERS[-1]


def _tokenizer(clip: Any, name: str) -> Any:
    """The host's tokenizer that makes a list."""
    owner = clip.tokenizer
    return getattr(owner, name, None) or getattr(owner, getattr(owner, "clip", ""), None)
