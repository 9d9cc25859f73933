"""Learned words: vectors that stand for a placeholder in any prompt."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
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

_NAME = "embedding:"
"""The host's mark of the name of an embedding."""
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
            lambda match: self.stand_ins.get(word_key(match[0]), match[0]), text
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


class _TokenizerOfVectors:
    """What the tokenizer of a text encoder becomes that is no CLIP: the characters that stand for
    vectors are read as the host reads the names of embeddings. In front of the host's class.

    _vectors: by the character.
    """

    _vectors: Mapping[str, Tensor]

    def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> Any:
        named = "".join(
            f"{'' if before in ('', ' ') else ' '}{_NAME}{own} " if own in self._vectors else own
            for before, own in itertools.pairwise(("", *text))
        )
        chunks = cast(Any, super()).tokenize_with_weights(named, *args, **kwargs)
        # Not as bare vectors: Qwen-Image's tokenizer asks each token whether it is a number.
        return [
            [
                ({"type": "embedding", "data": first}, *rest)
                if any(first is vector for vector in self._vectors.values())
                else (first, *rest)
                for first, *rest in chunk
            ]
            for chunk in chunks
        ]

    def _try_get_embedding(self, name: str) -> tuple[Any, ...]:
        """What the host asks for behind the mark of a name: the vector, and the text behind it."""
        found: tuple[Any, ...] = cast(Any, super())._try_get_embedding(name)
        vector = self._vectors.get(name[:1])
        if vector is None:
            return found
        # 0.3.64 gives no name back.
        return (vector, *found[1:-1], " ".join(name[1:].split()))


def tokenizer_with(
    tokenizer: Any, embeddings: Sequence[Embedding], without: str = ""
) -> LearnedWordsTokenizer:
    """A tokenizer of the host, which stays as it was, with learned words. If it has some, so has
    the new one. without: a text whose characters must not stand for vectors. ValueError when two
    words are one, or one is no word."""
    if isinstance(tokenizer, LearnedWordsTokenizer):
        words = tokenizer._words
        tokenizer, embeddings = words.host, (*words.embeddings, *embeddings)
    stand_ins = _stand_ins(embeddings, without)
    # The longest first, so that '<anna2>' is not read as '<anna' or 'anna'.
    names = sorted((embedding.placeholder for embedding in embeddings), key=len, reverse=True)
    pattern = re.compile("|".join(map(word_pattern, names)) or r"(?!)", re.IGNORECASE)
    changed = copy.copy(tokenizer)
    vectors: dict[str, dict[int, Tensor]] = {}
    for encoder, part in text_tokenizers(tokenizer).items():
        part = copy.copy(part)
        setattr(changed, tokenizer_place(tokenizer, encoder), part)
        own = {
            character: vector
            for embedding in embeddings
            if encoder in embedding.vectors
            for character, vector in zip(
                stand_ins[word_key(embedding.placeholder)], embedding.vectors[encoder], strict=True
            )
        }
        if encoder not in NAMES:
            part._vectors = own
            # Without a folder the host reads no names.
            part.embedding_directory = part.embedding_directory or []
            part.__class__ = type(type(part).__name__, (_TokenizerOfVectors, type(part)), {})
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
    changed.__class__ = type(kind.__name__, (LearnedWordsTokenizer, kind), {})
    changed._words = _Words(tokenizer, tuple(embeddings), stand_ins, pattern, vectors)
    return cast(LearnedWordsTokenizer, changed)


def host_tokenizer(tokenizer: Any) -> Any:
    """The host's own, without learned words."""
    return tokenizer._words.host if isinstance(tokenizer, LearnedWordsTokenizer) else tokenizer


def _stand_ins(embeddings: Sequence[Embedding], without: str) -> dict[str, str]:
    """By word_key as many characters as a word has vectors."""
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
        count = len(next(iter(embedding.vectors.values())))
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
    changed = clip.clone()
    changed.tokenizer = tokenizer_with(clip.tokenizer, embeddings)
    return changed
