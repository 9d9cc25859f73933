"""Families of transformers, most of which let text and picture share one attention: a record each.

A new one is a record in `FAMILIES` and a small model of it in tests/host/dits.py:
docs/model_families.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ....magic.positions import Pairing

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Order = Literal[
    "text, picture, references", "text, picture, padding", "picture, text", "picture | text"
]
Padding = Literal["none", "left", "right"]


@dataclass(frozen=True)
class BlockKind:
    """Blocks of a kind. letter: in what users type; name: as the host calls the kind in an
    attention call ('block_type'), if it does; attribute: of the network, the list that holds
    them."""

    letter: str
    name: str
    attribute: str


_DOUBLE_SINGLE = (
    BlockKind("d", "double", "double_blocks"),
    BlockKind("s", "single", "single_blocks"),
)


@dataclass(frozen=True)
class Family:
    """What tells one family of transformers from another.

    model: its class in the host's model_base; kinds: its blocks, in forward order; embedder:
    attribute of the network that holds dims and theta of the rotary axes, None for models that turn
    nothing by position; patch: attribute that holds the side of a token in latent pixels; order: of
    the tokens in a joint attention, with the pictures of an edit model ('references') behind the
    one that is made, or 'picture | text' where a block has two attentions, of the picture by itself
    and then to the text; text_padding: on which side of a prompt's tokens the model or its
    conditioning puts others; multiple: attribute that holds to a multiple of what text and picture
    are padded, or None; is_centred: rows and columns of a picture count from its middle;
    text_comes_first: a picture's coordinate on axis 0 is the padded length of the text plus one;
    pairing: of rotated channels; index_step: how far apart the pictures of a sequence lie on axis
    0; tokens: which list of the tokenizer's makes the context, None for its only one; has_clip:
    whether CLIP's chunks come before these; behind: the list of another text encoder, whose tokens
    stand behind the context's, twice; is_inside: whether the model makes its context inside, one
    token for each of the list, so that the conditioning does not tell how many there are; heads:
    attribute that holds how many heads a layer has; guidance: what the model is told while it sees
    a reference, None when it is told none; native_side: pixels along a side of what it was trained
    on; takes_pictures: whether it, or a fine-tune of it, can be given pictures in its sequence;
    text_sees_pictures: whether its text encoder may be shown pictures too, whose tokens stand
    before the prompt's; text_attends: whether a prompt's tokens look at each other in layers of
    their own, before those of text and picture.
    """

    model: str
    kinds: tuple[BlockKind, ...]
    embedder: str | None = "pe_embedder"
    patch: str = "patch_size"
    order: Order = "text, picture, references"
    text_padding: Padding = "none"
    multiple: str | None = None
    is_centred: bool = False
    text_comes_first: bool = False
    pairing: Pairing = "interleaved"
    index_step: float = 1.0
    tokens: str | None = None
    has_clip: bool = False
    behind: str | None = None
    is_inside: bool = False
    heads: str = "num_heads"
    guidance: float | None = None
    native_side: int = 1024
    takes_pictures: bool = False
    text_sees_pictures: bool = False
    text_attends: bool = False

    @property
    def has_text_of_its_own(self) -> bool:
        """Whether a layer's text is something else than the conditioning, token by token."""
        return self.behind is not None or self.is_inside

    @property
    def has_text_apart(self) -> bool:
        """Whether the picture looks at the text in attentions of their own."""
        return self.order == "picture | text"


FAMILIES: tuple[Family, ...] = (
    Family("Flux", _DOUBLE_SINGLE, tokens="t5xxl", guidance=1.0, takes_pictures=True),
    # Its conditioning is padded to 512 tokens.
    Family(
        "Flux2",
        _DOUBLE_SINGLE,
        text_padding="left",
        index_step=10.0,
        guidance=1.0,
        takes_pictures=True,
    ),
    Family(
        "QwenImage",
        (BlockKind("d", "double", "transformer_blocks"),),
        is_centred=True,
        heads="transformer_blocks.0.attn.heads",
        takes_pictures=True,
        text_sees_pictures=True,
    ),
    # Lumina2 and Z-Image, which pads text and picture to 32 tokens each.
    Family(
        "Lumina2",
        (BlockKind("d", "double", "layers"),),
        embedder="rope_embedder",
        order="text, picture, padding",
        text_padding="right",
        multiple="pad_tokens_multiple",
        text_comes_first=True,
        heads="n_heads",
        takes_pictures=True,
    ),
    # Learned positions; its layers say neither what they are nor which.
    Family(
        "SD3",
        (BlockKind("d", "double", "joint_blocks"),),
        embedder=None,
        tokens="t5xxl",
        has_clip=True,
    ),
    Family("Chroma", _DOUBLE_SINGLE, tokens="t5xxl"),
    Family(
        "Krea2",
        (BlockKind("s", "single", "blocks"),),
        patch="patch",
        heads="heads",
        takes_pictures=True,
        text_sees_pictures=True,
        text_attends=True,
    ),
    # T5's tokens, then Llama's last layer and the one that belongs to the block. Its layers say
    # neither what they are nor which.
    Family(
        "HiDream",
        (
            BlockKind("d", "double", "double_stream_blocks"),
            BlockKind("s", "single", "single_stream_blocks"),
        ),
        order="picture, text",
        tokens="t5xxl",
        behind="llama",
        heads="num_attention_heads",
    ),
    # Of the class of Cosmos Predict 2. An adapter inside makes the context of T5's tokens and of
    # what Qwen3 says of the prompt.
    Family(
        "Anima",
        (BlockKind("d", "double", "blocks"),),
        embedder="pos_embedder",
        patch="patch_spatial",
        order="picture | text",
        pairing="halves",
        tokens="t5xxl",
        is_inside=True,
    ),
)
"""All that are known."""


OUT_OF_REACH: Mapping[str, str] = {
    "ErnieImage": (
        "its layers do not pass the host's transformer options on to attention, so that nothing can"
        " look into them or change them without replacing its code, which the next ComfyUI would"
        " break. Use another model"
    ),
}
"""Classes of models that no record can describe, and why."""


def family_of(model: ModelPatcher) -> Family | None:
    """Which of them a MODEL is; None when it is none. A class that the host derives from one of
    them is another family: it may place or cut its tokens in another way."""
    import comfy.model_base

    kind: type[Any] = type(model.model)
    return next(
        (f for f in FAMILIES if getattr(comfy.model_base, f.model, None) is kind),
        None,
    )
