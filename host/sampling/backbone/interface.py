"""What a backbone is: all that the pack needs to know of a kind of model, behind one protocol.

Attention rules, layout, correspondence and MagicStyle ask it which layers there are, and let it
call them with what a layer sees of one prompt. How the host's hooks look is its secret.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ....magic.blocks import AttentionBlock, Block
from ....magic.concepts import Level
from ....magic.positions import Coordinates, Rotary
from ...text.context import ContextTokens
from ..options import ModelOptions
from .texts import TextsOfConds

LayerKey = tuple[Block, int]
"""A block and which of its transformer blocks: one attention layer."""
AttendBeside = Callable[[slice, Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
"""(rows of the view, q, k, v, bias): attention of the picture's queries in these rows."""


@dataclass(frozen=True, eq=False)
class LayerView:
    """What one attention layer sees of one prompt in one model call.

    layer: which one; cond: the id of the prompt's cond, None in a reference pass; q: B N C, the
    queries of the picture's tokens; k, v: B M C, what they meet; grid: rows and columns of the
    tokens of q; latent_size: rows and columns of the latent that this call shows; heads: of the
    layer; attend: the layer's attention with one bias a key (M) or None, for any q, k, v;
    foreign_keys: how many of k, at its end, other nodes have added.
    image: which of the keys are the picture's own; text: which are the prompt's, where both share
    one attention; coordinates: where the picture's tokens lie, in models that turn queries and keys
    by position, else None; references: which of the keys are those of pictures that an edit model
    is given, one by one; attend_to: the layer's attention of any q to the view's own keys, where
    text and picture share one attention, else None: (q, which pictures of the batch, which keys or
    None for all, a bias for each of these or None); beside: as `attend`, with k, v in the place of
    the picture's own keys, and all others of the view (the prompt's) beside them; None where there
    are no others.
    """

    layer: LayerKey
    cond: Any
    q: Tensor
    k: Tensor
    v: Tensor
    grid: tuple[int, int]
    latent_size: tuple[int, int]
    heads: int
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    foreign_keys: int = 0
    image: slice = field(default_factory=lambda: slice(None))
    text: slice = field(default_factory=lambda: slice(0, 0))
    coordinates: Coordinates | None = None
    references: tuple[slice, ...] = ()
    attend_to: Callable[[Tensor, slice, Tensor | None, Tensor | None], Tensor] | None = None
    beside: AttendBeside | None = None

    def attend_beside(
        self, rows: slice, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Attention to other pictures' tokens in the place of the picture's own. rows: of the view,
        that q belongs to; bias: one number for each of k, or None."""
        if self.beside is None:
            return self.attend(q, k, v, bias)
        return self.beside(rows, q, k, v, bias)


Rule = Callable[[LayerView], Tensor]
"""What the picture's tokens get instead of the layer's attention: B N C."""
Look = Callable[[LayerView], None]
"""Looks at a layer without changing anything."""


@dataclass(frozen=True, eq=False)
class Watch:
    """Layers that are looked at while the model runs.

    blocks: which ones; conds: the ids of the prompts that are of interest; batch: pictures in a
    model call; image: gets what the picture's tokens see of each other; text: of the prompt.
    """

    blocks: Collection[Block]
    conds: Collection[Any]
    batch: int
    image: Look | None = None
    text: Look | None = None


@dataclass(frozen=True)
class GivenPictures:
    """What a model call is given beside its latent and its prompt, by the host's names of them.

    sizes: rows and columns of each latent ('ref_latents'); texts: tokens of the prompts that go
    with them ('ref_contexts'); views: tokens of each as a vision encoder sees it ('siglip_feats').
    """

    sizes: tuple[tuple[int, int], ...] = ()
    texts: tuple[int, ...] = ()
    views: tuple[int, ...] = ()

    @classmethod
    def of(cls, conditioning: Mapping[str, Any]) -> GivenPictures:
        """conditioning: what the model is called with."""
        latents, contexts, views = (
            conditioning.get(name) or () for name in ("ref_latents", "ref_contexts", "siglip_feats")
        )
        return cls(
            tuple((latent.shape[-2], latent.shape[-1]) for latent in latents),
            tuple(context.shape[1] for context in contexts),
            tuple(view.shape[1] * view.shape[2] for view in views),
        )


_LLAMA = "encoder_hidden_states_llama3"


@dataclass(frozen=True)
class CallSize:
    """What a model call runs on. latent_size: rows and columns; context: tokens of its
    conditioning; given: pictures beside the one that is made; behind: tokens of a second text
    encoder in a layer, all together (the host's 'encoder_hidden_states_llama3', twice)."""

    latent_size: tuple[int, int]
    context: int
    given: GivenPictures = GivenPictures()
    behind: int = 0

    @classmethod
    def of(cls, x: Tensor, context: Tensor | None, conditioning: Mapping[str, Any]) -> CallSize:
        """x: the latents, B C h w; context: B M C or None; conditioning: what else the model is
        called with."""
        tokens = 0 if context is None else context.shape[1]
        given, llama = GivenPictures.of(conditioning), conditioning.get(_LLAMA)
        behind = 0 if llama is None else 2 * llama.shape[-2]  # B L N C, L layers
        return cls((x.shape[-2], x.shape[-1]), tokens, given, behind)


@dataclass(frozen=True)
class LayerTokens:
    """What the tokens of a layer's input are. text, image: from which to before which are the
    prompt's, and the picture's that is made; grid: rows and columns of the picture's."""

    text: tuple[int, int]
    image: tuple[int, int]
    grid: tuple[int, int]


@dataclass(frozen=True)
class ReferenceHabits:
    """What is usual with references on a kind of model, from ablations.

    strengths: in numbers what users say in words; inject_at: the share of sampling from which each
    region had best look at its own reference only; guidance: at which models that are told it see a
    reference, None for those that are not; style_strengths: as strengths, of the look of a picture
    in a new one, and style_layers: where that is seen.
    """

    strengths: Mapping[Level, float]
    inject_at: float
    guidance: float | None = None
    style_strengths: Mapping[Level, float] = field(
        default_factory=lambda: {"subtle": 0.0, "normal": 1.0, "strong": 2.0}
    )
    style_layers: str = "decoder"


def repeat(span: Sequence[int], length: int, tokens: int) -> list[int]:
    """Places of a prompt's tokens among `tokens`: the host repeats a shorter prompt until it is as
    long as another one in the batch."""
    return [place + start for start in range(0, tokens - length + 1, length) for place in span]


class Backbone(Protocol):
    """A kind of model as one MODEL has it."""

    @property
    def layers(self) -> tuple[AttentionBlock, ...]:
        """All blocks in which the picture's tokens look at each other, in forward order."""
        ...

    @property
    def pixels(self) -> int:
        """Pixels of the picture along a side of a latent pixel."""
        ...

    @property
    def native_side(self) -> int:
        """Side in pixels of the square pictures that the model was trained on."""
        ...

    @property
    def habits(self) -> ReferenceHabits:
        """What is usual with references."""
        ...

    @property
    def rotary(self) -> Rotary | None:
        """How queries and keys are turned by position; None where they are not."""
        ...

    @property
    def index_step(self) -> float:
        """How far apart the pictures of a sequence lie on axis 0 of a position."""
        ...

    def coordinates(self, latent_size: tuple[int, int], tokens: int) -> Coordinates | None:
        """Where the tokens of a picture of rows, columns lie under a prompt of so many tokens; None
        where positions do not matter."""
        ...

    @property
    def feature_bytes(self) -> int:
        """What the key and the value of one token take in one layer."""
        ...

    @property
    def context(self) -> ContextTokens | None:
        """How a prompt's context is made of tokens; None for CLIP's chunks of 77."""
        ...

    def parse_layers(self, text: str) -> tuple[Block, ...]:
        """The blocks that a user names. ValueError when there are none, or the text is wrong."""
        ...

    def layout_blocks(self, latent_size: tuple[int, int]) -> tuple[Block, ...]:
        """The blocks from which the layout of a latent of rows, columns is read, finest first."""
        ...

    def with_rule(
        self,
        options: ModelOptions,
        blocks: Collection[Block],
        conds: Collection[Any],
        batch: int,
        rule: Rule,
    ) -> ModelOptions:
        """Options of a model call in which `rule` draws the rows of `conds` in these blocks.

        All other rows are drawn by whatever stands in these layers. batch: pictures in the call.
        """
        ...

    def with_watch(self, options: ModelOptions, watch: Watch) -> ModelOptions:
        """Options of a model call in which the watch is shown its layers. Pictures stay as they
        are."""
        ...

    def with_texts(self, options: ModelOptions, texts: TextsOfConds, batch: int) -> ModelOptions:
        """Options of a model call in which parts of the picture read texts of their own, in the
        place of so much of the prompt: out + share * (attention to the text - attention to the
        prompt). To be put around everything else. batch: pictures in the call. ValueError for a
        kind of model that cannot."""
        ...

    def reference_options(
        self, options: ModelOptions, blocks: Collection[Block], look: Look, is_bare: bool
    ) -> ModelOptions:
        """The main call's options as a reference pass needs them: without what is meant for the
        picture that is being made (other attention patches, caches, guidance), with `look` in these
        blocks. is_bare: also without what other nodes put around the model."""
        ...

    def reference_parts(self, options: ModelOptions) -> Sequence[Any]:
        """What `reference_options` keeps of other nodes': features depend on it."""
        ...

    @property
    def spreads_words(self) -> bool:
        """Whether the layout is better when what words own is carried on to the places that look at
        these (`image_attention`)."""
        ...

    def image_attention(self, view: LayerView) -> Tensor:
        """How much each of the picture's tokens looks at each other one: B N N, mean over heads."""
        ...

    def text_attention(self, view: LayerView, length: int) -> Tensor:
        """How much each of the picture's tokens looks at each token of a prompt of `length` tokens:
        B N length, mean over heads."""
        ...

    def background_columns(self, tokens: int) -> Sequence[int]:
        """Which tokens of a prompt of so many get the attention of what no word describes."""
        ...

    def tokens_of(self, layer: str, tokens: int, call: CallSize) -> LayerTokens | None:
        """What the tokens of a layer are, which is called as in the host's network and gets so
        many; None when that is not known: another node merges or cuts them."""
        ...

    def places_in_text(self, span: Sequence[int], length: int, tokens: int) -> list[int]:
        """Where tokens of a prompt of `length` tokens are among the `tokens` that a layer has of
        text."""
        ...
