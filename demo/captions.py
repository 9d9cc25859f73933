"""Captions as tokens of a short vocabulary, with what each token names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .dataset import SCENE_PARTS
from .portraits import (
    BACKGROUND_COLOURS,
    EXPRESSIONS,
    GARMENT_COLOURS,
    HAIR_COLOURS,
    HAT_KINDS,
    PARTS,
    PATTERNS,
    SKIN_NAMES,
    STYLES,
    Portrait,
    Scene,
    caption_phrases,
    scene_caption_phrases,
)
from .transformer import TEXT_TOKENS

Line = list[tuple[str, int | None]]
"""Phrases of a caption, each with the index of the part that it names."""
GRAMMAR = (
    "a an , and with wearing style woman man hair beard hat glasses sunglasses scarf shirt"
    " background skin"
)
VOCABULARY = (
    *STYLES,
    *PATTERNS,
    *HAT_KINDS,
    *EXPRESSIONS,
    *GARMENT_COLOURS,
    *BACKGROUND_COLOURS,
    *HAIR_COLOURS,
    *SKIN_NAMES,
    GRAMMAR,
)
"""All words that captions of the toys are made of."""
START_TOKEN, END_TOKEN, UNKNOWN_TOKEN = 49406, 49407, -1


@dataclass(frozen=True)
class CaptionBatch:
    """Tokenised captions. `rows`: B T, rows of the short vocabulary. Of the tokens that name a
    part, each B MAX_NAMED: `tokens` (where in the line), `parts` (index of the part), `weights` (1
    for a noun, half for its adjectives, 0 for an unused entry, whose token is 0)."""

    rows: Tensor
    tokens: Tensor
    parts: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> CaptionBatch:
        return CaptionBatch(*(tensor.to(device) for tensor in vars(self).values()))

    @property
    def is_empty(self) -> Tensor:
        """B: nothing is named, as in an empty caption."""
        return self.weights.sum(1) == 0


class Captions:
    """Tokenises captions phrase by phrase, and keeps which tokens name which part.
    `words`: the vocabulary; `length`: tokens of a line."""

    MAX_NAMED = 32

    def __init__(self, words: Sequence[str] = VOCABULARY, length: int = 77) -> None:
        from comfy.sd1_clip import SD1Tokenizer

        # The host sets the tokenizer by name.
        self._tokenizer = vars(SD1Tokenizer())["clip_l"].tokenizer
        self._ids: dict[str, list[int]] = {}
        self.length = length
        self.token_ids = sorted(
            {i for word in words for i in self.ids(word)} | {START_TOKEN, END_TOKEN}
        )
        self._row = {token: row for row, token in enumerate(self.token_ids, start=1)}

    @property
    def end_row(self) -> int:
        """The row of the end token, which also fills what is left of a line."""
        return self._row[END_TOKEN]

    def row_of(self, word: str) -> int:
        """The row of a word of one token."""
        (token,) = self.ids(word)
        return self._row[token]

    def row_of_token(self, token: int) -> int:
        """The row of a token of the vocabulary."""
        return self._row[token]

    def ids(self, words: str) -> list[int]:
        """The host's tokens of some words, without start and end."""
        if words not in self._ids:
            self._ids[words] = self._tokenizer(words)["input_ids"][1:-1]
        return self._ids[words]

    def batch(self, portraits: Sequence[Portrait], rng: random.Random) -> CaptionBatch:
        """Captions of portraits: a tenth are empty, each part is mentioned with 92 %, the skin with
        60 %."""
        lines: list[Line] = []
        for portrait in portraits:
            if rng.random() < 0.1:
                lines.append([])
                continue
            mention = {part for part in PARTS if rng.random() > 0.08}
            if rng.random() < 0.6:
                mention.add("skin")
            lines.append(
                self._with_strangers(
                    [
                        (words, PARTS.index(part) if part else None)
                        for words, part in caption_phrases(portrait, frozenset(mention))
                    ],
                    rng,
                )
            )
        return self.encode(lines)

    @staticmethod
    def _with_strangers(phrases: Line, rng: random.Random) -> Line:
        """Now and then a word that is in no vocabulary (an empty phrase stands for it)."""
        line: Line = []
        for words, part in phrases:
            if part is None and rng.random() < 0.01:
                line.append(("", None))
            line.append((words, part))
        return line

    def encode(self, lines: Sequence[Line]) -> CaptionBatch:
        """Lines of (words, index of the part that they name); empty words are one unknown word. An
        empty line is the empty caption. What is longer than a line is cut off."""
        rows = torch.full((len(lines), self.length), self.end_row)
        named = torch.zeros(3, len(lines), self.MAX_NAMED)
        for b, phrases in enumerate(lines):
            line, count = [START_TOKEN], 0
            for words, part in phrases:
                ids = self.ids(words) if words else [UNKNOWN_TOKEN]
                for i, token in enumerate(ids):
                    fits = count < self.MAX_NAMED and len(line) < self.length - 1
                    if part is not None and fits:
                        # The noun comes last; its adjectives are tied to the same part, more
                        # loosely.
                        named[:, b, count] = torch.tensor(
                            [len(line), part, 1.0 if i == len(ids) - 1 else 0.5]
                        )
                        count += 1
                    line.append(token)
            line = line[: self.length - 1]
            rows[b, : len(line)] = torch.tensor([self._row.get(token, 0) for token in line])
        return CaptionBatch(rows, named[0].long(), named[1].long(), named[2])


class TransformerCaptions(Captions):
    """Captions of portraits and scenes in 40 tokens."""

    def __init__(self) -> None:
        super().__init__(length=TEXT_TOKENS)

    def draw(self, pictures: Sequence[Portrait | Scene], rng: random.Random) -> CaptionBatch:
        """Captions drawn for pictures: a tenth are empty. The parts are indices of SCENE_PARTS."""
        return self.encode(
            [
                []
                if rng.random() < 0.1
                else self._with_strangers(
                    self._scene_line(picture, rng)
                    if isinstance(picture, Scene)
                    else self._portrait_line(picture, rng),
                    rng,
                )
                for picture in pictures
            ]
        )

    def _portrait_line(self, portrait: Portrait, rng: random.Random) -> Line:
        mention = {part for part in PARTS if rng.random() > 0.08}
        if rng.random() < 0.5:
            mention.add("skin")
        phrases = caption_phrases(portrait, frozenset(mention))
        return self._without_style(
            [(words, PARTS.index(part) if part else None) for words, part in phrases],
            portrait.style,
            rng,
        )

    def _scene_line(self, scene: Scene, rng: random.Random) -> Line:
        names_skin = rng.random() < 0.5
        mentions = [self._mention(names_skin, rng) for _ in range(2)]
        while True:
            phrases = scene_caption_phrases(scene, (mentions[0], mentions[1]))
            line: Line = [
                (words, SCENE_PARTS.index((0 if part == "background" else person, part)))
                if part
                else (words, None)
                for words, part, person in phrases
            ]
            if sum(len(self.ids(words)) for words, _ in line) <= TEXT_TOKENS - 2:
                return self._without_style(line, scene.left.style, rng)
            # Too long: something less is said of one of them.
            person = rng.randrange(2)
            if mentions[person]:
                mentions[person] -= {rng.choice(sorted(mentions[person]))}

    @staticmethod
    def _mention(names_skin: bool, rng: random.Random) -> frozenset[str]:
        """What is said of a person of a scene: a word or two more than the hair."""
        clothes = rng.sample(("hat", "hat", "shirt", "scarf", "glasses"), rng.choice((1, 2, 2, 3)))
        always = ("hair", "background") if rng.random() < 0.9 else ("background",)
        skin = ("skin",) if names_skin and rng.random() < 0.7 else ()
        return frozenset({*clothes, *always, *skin})

    @staticmethod
    def _without_style(line: Line, style: str, rng: random.Random) -> Line:
        """A caption that names no style means a cartoon."""
        return line[:-1] if style == "cartoon" and rng.random() < 0.4 else line
