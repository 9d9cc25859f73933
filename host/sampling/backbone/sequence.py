"""Where a joint attention has its tokens: of the text, of the picture that is made, and of the
pictures that an edit model is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .families import Order
from .interface import CallSize


@dataclass(frozen=True)
class TokenOrder:
    """How a model lays its tokens out. order: of its family; patch: side of a token in latent
    pixels; multiple: to a multiple of how many tokens text and picture are padded; has_views:
    whether it has tokens of a vision encoder for each picture."""

    order: Order
    patch: int
    multiple: int = 1
    has_views: bool = False

    def grid(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens: what is odd is padded."""
        rows, columns = (-(-side // self.patch) for side in latent_size)
        return rows, columns

    def with_padding(self, tokens: int) -> int:
        return -(-tokens // self.multiple) * self.multiple

    def tokens(self, latent_size: tuple[int, int]) -> int:
        """Of a picture."""
        rows, columns = self.grid(latent_size)
        return rows * columns

    def read(
        self, call: CallSize, tokens: int, given: Sequence[int] | None
    ) -> TokenSequence | None:
        """Which of so many tokens are what; None when text and pictures do not make so many.
        given: tokens of each given picture, as the host says; None when it does not."""
        own = self.tokens(call.latent_size)
        if self.order == "picture, text":
            end = own + call.context + call.behind
            is_all = tokens == end
            return TokenSequence(slice(own, end), slice(0, own), (), end) if is_all else None
        if self.order == "text, picture, padding":
            if call.given.sizes:
                return self._omni(call, tokens, own)
            text = self.with_padding(call.context)
            is_all = tokens == text + self.with_padding(own)
            return TokenSequence.after(text, own) if is_all else None
        for sizes in self._given(call, given):
            sequence = TokenSequence.after(call.context, own, sizes)
            if tokens == sequence.end:
                return sequence
        return None

    def read_apart(
        self, call: CallSize, queries: int, keys: int, is_second: bool
    ) -> TokenSequence | None:
        """The same of an attention of the picture by itself, or to the text. queries, keys: how
        many tokens ask and are asked; is_second: whether the picture has looked at itself already,
        which tells where text and picture have as many."""
        own = self.tokens(call.latent_size)
        if queries != own or keys not in (own, call.context):
            return None
        if keys == call.context and (keys != own or is_second):
            return TokenSequence(slice(0, keys), slice(0, 0), (), keys)
        return TokenSequence(slice(0, 0), slice(0, own), (), own)

    def _given(self, call: CallSize, given: Sequence[int] | None) -> list[Sequence[int]]:
        """What may be the tokens of the given pictures: older hosts do not say, and some models
        leave them out."""
        if given is not None:
            return [given]
        return [[self.tokens(size) for size in call.given.sizes], ()]

    def _omni(self, call: CallSize, tokens: int, own: int) -> TokenSequence | None:
        """Z-Image-Omni: the texts of the given pictures, the prompt, texts that are left over; what
        the vision encoder sees; the given pictures, the picture. Each is padded."""
        given, count = call.given, len(call.given.sizes)
        # A picture without a text of its own has a pad in its place.
        texts = [self.with_padding(t) for t in given.texts] + [self.multiple] * count
        before, after = sum(texts[:count]), sum(map(self.with_padding, given.texts[count:]))
        text = self.with_padding(call.context)
        views = [self.with_padding(view) for view in given.views[:count]]
        views += [self.multiple] * (count + 1 - len(views))
        place = before + text + after + (sum(views) if self.has_views else 0)
        references = []
        for size in given.sizes:
            references.append(slice(place, place + self.tokens(size)))
            place += self.with_padding(self.tokens(size))
        if tokens != place + self.with_padding(own):
            return None
        return TokenSequence(
            slice(before, before + text), slice(place, place + own), tuple(references), tokens
        )

    def index_of(self, call: CallSize) -> int:
        """Where the picture lies on axis 0, in models where the text comes first there."""
        given, start = call.given, 0
        for i in range(len(given.sizes)):
            text = given.texts[i] if i < len(given.texts) else 0
            start += (text if self.has_views else self.with_padding(max(text, 1))) + 2
        is_bare = self.has_views and given.sizes
        return start + (call.context if is_bare else self.with_padding(call.context)) + 1


@dataclass(frozen=True)
class TokenSequence:
    """Where a joint attention has its tokens. text: of the prompt, padding included; image: of the
    picture that is being made; references: of the pictures that are given; end: how many there
    are. Where the picture looks at the text apart, one of the two is empty."""

    text: slice
    image: slice
    references: tuple[slice, ...]
    end: int

    @property
    def is_text(self) -> bool:
        """Whether no key is the picture's, whose tokens ask."""
        return bool(self.image.start == self.image.stop)

    @classmethod
    def after(cls, text: int, own: int, given: Sequence[int] = ()) -> TokenSequence:
        """Text, the picture, what is given, one after the other."""
        place, references = text + own, []
        for size in given:
            references.append(slice(place, place + size))
            place += size
        return cls(slice(0, text), slice(text, text + own), tuple(references), place)

    def others(self, tokens: int, device: torch.device) -> Tensor:
        """The places of all of the first tokens but the picture's."""
        places = torch.arange(tokens, device=device)
        return places[(places < self.image.start) | (places >= self.image.stop)]
