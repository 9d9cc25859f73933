"""Learned words: vectors that stand for a placeholder in any prompt."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from ...magic.capture_sets import check_placeholder, word_key, word_pattern
from ...magic.messages import shown
from .clip import (
    NAMES,
    chunks_of,
    loaded_encoders,
    text_tokenizers,
    tokenizer_place,
    word_width,
)

_MARK = "embedding:"
"""The host's, of the name of an embedding."""
_OF_NAME = r"[^\s,():<\[]"
"""What such a name is made of, as the host reads it and weights leave it."""
_ORDINARY = "cat"
"""A word, to read what stands behind one."""
_STAND_INS = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Characters for private use: one stands for each vector while a text is cut into tokens."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """A learned word.

    placeholder: what is written in prompts. vectors: for each text encoder of the host ('clip_l',
    'clip_g', 'clip_h', 't5xxl', 'qwen3_4b' and others) its N C vectors.
    """

    placeholder: str
    vectors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class _Words:
    """The learned words of a tokenizer.

    host: the tokenizer without them. embeddings: the words. stand_ins: by word_key, the characters
    that stand for a word's vectors. pattern: finds the words in a text. vectors: for each text
    encoder that is CLIP's, by the token of a character; the tokenizers of others have their own.
    """

    host: Any
    embeddings: tuple[Embedding, ...]
    stand_ins: Mapping[str, str]
    pattern: re.Pattern[str]
    vectors: Mapping[str, Mapping[int, Tensor]]

    def replace(self, text: str) -> str:
        return self.pattern.sub(
            lambda match: self.stand_ins.get(word_key(match[0].removeprefix(_MARK)), match[0]), text
        )

    def stand_in_is_in(self, text: str) -> bool:
        return any(
            character in text for characters in self.stand_ins.values() for character in characters
        )


class LearnedWordsTokenizer:
    """What a tokenizer of the host becomes that has learned words: their tokens are vectors, as
    those of the host's 'embedding:' syntax are. Made by `tokenizer_with`, in front of the host's
    class, so that all else is as it was."""

    _words: _Words

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        tokens = self._tokens(text, return_word_ids, **kwargs)
        for encoder, vectors in self._words.vectors.items():
            chunks = chunks_of(tokens, encoder)
            chunks[:] = [
                [
                    (
                        (vectors[token[0]], *token[1:])
                        if isinstance(token[0], int) and token[0] in vectors
                        else token
                    )
                    for token in chunk
                ]
                for chunk in chunks
            ]
        return tokens

    def single_chunk(self, text: str) -> dict[str, list[int]]:
        """For each text encoder the 77 ids of a short prompt, in which the i-th vector of the
        learned words is -1 - i. ValueError when it is longer, or has weights or embeddings."""
        tokens = self._tokens(text)
        ids: dict[str, list[int]] = {}
        for encoder, vectors in self._words.vectors.items():
            chunk, *more = chunks_of(tokens, encoder)
            if more or any(weight != 1 or isinstance(token, Tensor) for token, weight in chunk):
                raise ValueError(
                    f"training prompt '{shown(text)}' must fit into 77 tokens and have no weights"
                    " or embeddings: shorten the template"
                )
            rows = {token: -1 - i for i, token in enumerate(vectors)}
            ids[encoder] = [rows.get(token, token) for token, _ in chunk]
        return ids

    def _tokens(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, Any]:
        """The tokens with learned words as ids past the vocabulary."""
        words = self._words
        if words.stand_in_is_in(text):
            # The ids are the same whatever the characters are.
            other = tokenizer_with(words.host, words.embeddings, without=text)
            return other._tokens(text, return_word_ids, **kwargs)
        tokens: dict[str, Any] = cast(Any, super()).tokenize_with_weights(
            words.replace(text), return_word_ids, **kwargs
        )
        return tokens


class _PiecesAndVectors:
    """What the tokenizer inside one of the host's becomes, for a text encoder that is no CLIP: it
    gives vectors among the ids, and the ids that the text has with an ordinary word in their place.

    _inner: the one that it stands for. _vectors: by the character that stands for them. _read: what
    is read instead of the characters of words that have none for this encoder. _start, _has_end:
    how many ids it puts before a text, and whether one behind.
    """

    def __init__(self, part: Any, vectors: Mapping[str, Tensor], read: Mapping[str, str]) -> None:
        self._inner = part.tokenizer
        self._vectors, self._read = vectors, read
        self._start, self._has_end = part.tokens_start, part.tokenizer_adds_end_token
        self._pattern = re.compile(f"([{''.join(vectors)}])" if vectors else r"(?!)")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __call__(self, text: str, *args: Any, **kwargs: Any) -> Any:
        text = "".join(self._read.get(character, character) for character in text)
        first, *others = self._pattern.split(text)
        if not others:
            return self._inner(text, *args, **kwargs)
        # A word takes the blank before it into its own token.
        ids: list[Any] = self._ids(first.removesuffix(" "))
        end = self._inner(first)["input_ids"][-1:] if self._has_end else []
        *between, last = others[1::2]
        behind = [*(each.removesuffix(" ") for each in between), last]
        for character, each in zip(others[::2], behind, strict=True):
            ids.append({"type": "embedding", "data": self._vectors[character]})
            ids += self._behind_a_word(each)
        return {"input_ids": [*ids, *end]}

    def _ids(self, text: str) -> list[int]:
        """With the start, without the end."""
        ids: list[int] = self._inner(text)["input_ids"]
        return ids[:-1] if self._has_end else ids

    def _behind_a_word(self, text: str) -> list[int]:
        """Of what stands between a word and the next one, or the end."""
        word, both = self._ids(_ORDINARY), self._ids(_ORDINARY + text)
        if both[: len(word)] == word:
            return both[len(word) :]
        return self._ids(text)[self._start :]


def tokenizer_with(
    tokenizer: Any, embeddings: Sequence[Embedding], without: str = ""
) -> LearnedWordsTokenizer:
    """A tokenizer of the host, which stays as it was, with learned words. If it has some, so has
    the new one. without: a text whose characters must not stand for vectors. ValueError when two
    words are one, one is no word, or one has not the same number of vectors for each encoder."""
    if isinstance(tokenizer, LearnedWordsTokenizer):
        words = tokenizer._words
        tokenizer, embeddings = words.host, (*words.embeddings, *embeddings)
    own_parts = text_tokenizers(tokenizer)
    stand_ins = _stand_ins(embeddings, own_parts, without)
    # The longest first, so that '<anna2>' is not read as '<anna' or 'anna'.
    names = sorted((embedding.placeholder for embedding in embeddings), key=len, reverse=True)
    either = "|".join(map(word_pattern, names)) or r"(?!)"
    # A name that the host is to look for is left alone, unless a learned word is all of it.
    pattern = re.compile(
        rf"(?<![^\s(])(?-i:{_MARK})(?:(?:{either})(?!{_OF_NAME})|{_OF_NAME}+)|{either}",
        re.IGNORECASE,
    )
    result = copy.copy(tokenizer)
    vectors: dict[str, dict[int, Tensor]] = {}
    for encoder, part in own_parts.items():
        part = copy.copy(part)
        setattr(result, tokenizer_place(tokenizer, encoder), part)
        own = {
            character: vector
            for embedding in embeddings
            if encoder in embedding.vectors
            for character, vector in zip(
                stand_ins[word_key(embedding.placeholder)], embedding.vectors[encoder], strict=True
            )
        }
        if encoder not in NAMES:
            part.tokenizer = _PiecesAndVectors(
                part, own, _as_letters(embeddings, encoder, stand_ins)
            )
            continue
        part.tokenizer = copy.deepcopy(part.tokenizer)
        vectors[encoder] = {}
        for character, vector in own.items():
            part.tokenizer.add_tokens([character])
            vectors[encoder][part.tokenizer.convert_tokens_to_ids(character)] = vector
        part.inv_vocab = {
            **part.inv_vocab,
            **{token: part.tokenizer.decode([token]) for token in vectors[encoder]},
        }
    kind = type(tokenizer)
    result.__class__ = type(kind.__name__, (LearnedWordsTokenizer, kind), {})
    result._words = _Words(tokenizer, tuple(embeddings), stand_ins, pattern, vectors)
    return cast(LearnedWordsTokenizer, result)


def host_tokenizer(tokenizer: Any) -> Any:
    """The host's own, without learned words."""
    return tokenizer._words.host if isinstance(tokenizer, LearnedWordsTokenizer) else tokenizer


def _vector_count(embedding: Embedding, encoders: Iterable[str]) -> int:
    """How many a word has for each of some text encoders. ValueError when that differs."""
    counts = {
        name: len(own) for name in encoders if (own := embedding.vectors.get(name)) is not None
    }
    if len(set(counts.values())) > 1:
        each = " and ".join(f"{count} for {name}" for name, count in counts.items())
        raise ValueError(
            f"learned word '{embedding.placeholder}' has unequal numbers of vectors: {each}. A word"
            " has equally many for each text encoder: take another file of it, or save it anew"
        )
    return max(counts.values(), default=0)


def _as_letters(
    embeddings: Sequence[Embedding], encoder: str, stand_ins: Mapping[str, str]
) -> dict[str, str]:
    """By the characters of words that have no vectors for an encoder: what it reads instead, the
    word without its brackets."""
    read: dict[str, str] = {}
    for embedding in embeddings:
        if encoder not in embedding.vectors:
            characters = stand_ins[word_key(embedding.placeholder)]
            letters = "".join(re.findall(r"\w", embedding.placeholder))
            read |= {
                **dict.fromkeys(characters, ""),
                characters[0]: letters or embedding.placeholder,
            }
    return read


def _stand_ins(
    embeddings: Sequence[Embedding], encoders: Iterable[str], without: str
) -> dict[str, str]:
    """By word_key as many characters as a word has vectors for each of the encoders, and one for a
    word that has none."""
    free = (chr(code) for codes in _STAND_INS for code in codes if chr(code) not in without)
    stand_ins: dict[str, str] = {}
    for embedding in embeddings:
        check_placeholder(embedding.placeholder)
        key = word_key(embedding.placeholder)
        if key in stand_ins:
            raise ValueError(
                f"placeholder '{embedding.placeholder}' is there twice (capital letters make no"
                " difference): give each learned word a name of its own"
            )
        count = max(1, _vector_count(embedding, encoders))
        stand_ins[key] = "".join(itertools.islice(free, count))
    return stand_ins


def with_learned_words(clip: Any, embeddings: Sequence[Embedding]) -> Any:
    """A CLIP whose prompts understand the placeholders. ValueError when a vector does not fit the
    text encoders."""
    if not embeddings:
        # As from a training with trigger words.
        return clip.clone()
    for embedding in embeddings:
        for encoder in loaded_encoders(clip):
            width = word_width(clip, encoder)
            vectors = embedding.vectors.get(encoder)
            if vectors is None or vectors.shape[1] != width:
                numbers = "none" if vectors is None else str(vectors.shape[1])
                raise ValueError(
                    f"learned word '{embedding.placeholder}' was made for another model: "
                    f"text encoder {encoder} needs vectors of {width} numbers, it has {numbers}"
                )
    result = clip.clone()
    result.tokenizer = tokenizer_with(clip.tokenizer, embeddings)
    return result
