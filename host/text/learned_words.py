"""Learned words: vectors that stand for a placeholder in any prompt."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...magic.capture_sets import check_placeholder
from .clip import chunks_of, encoder_tokenizers, word_width

_FIRST_STAND_IN = 0xE000
"""A private-use character, which no vocabulary and no prompt has, stands for each vector while the
text is cut into tokens."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """A learned word.

    placeholder: what is written in prompts. vectors: for each text encoder of the host ('clip_l',
    'clip_g', 'clip_h') its N C vectors.
    """

    placeholder: str
    vectors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class _Tokenizers:
    """base: as the host made it; inner: a copy, whose text encoders' tokenizers have stand-ins."""

    base: Any
    inner: Any


class LearnedWordsTokenizer:
    """A tokenizer of the host that also has learned words: their tokens are vectors, as those of
    the host's 'embedding:' syntax are.

    Everything else is the tokenizer's that it was made from, which stays as it was. If that one has
    learned words, so has this one. As with the host's, the tokenizers of the text encoders are
    attributes, and the only ones that tokenize: other packs look for them and change them.
    """

    def __init__(self, tokenizer: Any, embeddings: Sequence[Embedding]):
        if isinstance(tokenizer, LearnedWordsTokenizer):
            tokenizer, embeddings = tokenizer.base, (*tokenizer.embeddings, *embeddings)
        self.embeddings = tuple(embeddings)
        self._tokenizers = _Tokenizers(tokenizer, copy.copy(tokenizer))
        self._pattern, self._stand_ins = _stand_ins(embeddings)
        self._vectors: dict[str, dict[int, Tensor]] = {}
        for encoder, part in encoder_tokenizers(tokenizer).items():
            part = copy.copy(part)
            part.tokenizer = copy.deepcopy(part.tokenizer)
            setattr(self, encoder, part)
            setattr(self._tokenizers.inner, encoder, part)
            self._vectors[encoder] = vectors = {}
            for embedding in embeddings:
                for character, vector in zip(
                    self._stand_ins[embedding.placeholder], embedding.vectors[encoder], strict=True
                ):
                    part.tokenizer.add_tokens([character])
                    vectors[part.tokenizer.convert_tokens_to_ids(character)] = vector
            part.inv_vocab = {
                **part.inv_vocab,
                **{token: part.tokenizer.decode([token]) for token in vectors},
            }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_tokenizers":
            raise AttributeError(name)
        return getattr(self._tokenizers.inner, name)

    @property
    def base(self) -> Any:
        """The host's own, without learned words."""
        return self._tokenizers.base

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        tokens = self._tokens(text, return_word_ids, **kwargs)
        for encoder, vectors in self._vectors.items():
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
        for encoder, vectors in self._vectors.items():
            chunk, *more = chunks_of(tokens, encoder)
            if more or any(weight != 1 or isinstance(token, Tensor) for token, weight in chunk):
                raise ValueError(
                    f"training prompt '{text}' must fit into 77 tokens and have no weights or"
                    " embeddings: shorten the template"
                )
            rows = {token: -1 - i for i, token in enumerate(vectors)}
            ids[encoder] = [rows.get(token, token) for token, _ in chunk]
        return ids

    def _tokens(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, Any]:
        """The tokens with learned words as ids past the vocabulary."""
        text = self._pattern.sub(lambda match: "".join(self._stand_ins[match[0]]), text)
        tokens: dict[str, Any] = self._tokenizers.inner.tokenize_with_weights(
            text, return_word_ids, **kwargs
        )
        return tokens


def host_tokenizer(tokenizer: Any) -> Any:
    """The host's own, without learned words."""
    return tokenizer.base if isinstance(tokenizer, LearnedWordsTokenizer) else tokenizer


def _stand_ins(embeddings: Sequence[Embedding]) -> tuple[re.Pattern[str], dict[str, str]]:
    stand_ins: dict[str, str] = {}
    position = _FIRST_STAND_IN
    for embedding in embeddings:
        check_placeholder(embedding.placeholder)
        if embedding.placeholder in stand_ins:
            raise ValueError(
                f"placeholder '{embedding.placeholder}' is there twice: give each learned word a"
                " name of its own"
            )
        count = len(next(iter(embedding.vectors.values())))
        stand_ins[embedding.placeholder] = "".join(chr(position + i) for i in range(count))
        position += count
    # The longest first, so that '<anna2>' is not read as '<anna' or 'anna'.
    names = sorted(stand_ins, key=len, reverse=True)
    return (
        re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names) or r"(?!)"),
        stand_ins,
    )


def with_learned_words(clip: Any, embeddings: Sequence[Embedding]) -> Any:
    """A CLIP whose prompts understand the placeholders. ValueError when a vector does not fit the
    text encoders."""
    encoders = encoder_tokenizers(host_tokenizer(clip.tokenizer))
    for embedding in embeddings:
        for encoder in encoders:
            width = word_width(clip, encoder)
            vectors = embedding.vectors.get(encoder)
            if vectors is None or vectors.shape[1] != width:
                numbers = "none" if vectors is None else str(vectors.shape[1])
                raise ValueError(
                    f"learned word '{embedding.placeholder}' was made for another model: "
                    f"text encoder {encoder} needs vectors of {width} numbers, it has {numbers}"
                )
    changed = clip.clone()
    changed.tokenizer = LearnedWordsTokenizer(clip.tokenizer, embeddings)
    return changed
