"""UNets of transformer blocks: SD1.5, SD2.1, SDXL and their fine-tunes.

The picture's tokens look at each other in `attn1` and at the prompt in `attn2`, which the host lets
others replace block by block (`patches_replace`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ....magic.blocks import AttentionBlock, Block, BlockNames, parse_blocks
from ....magic.layout import head_mean_attention, layout_downscales
from ..attention import biased_attention
from ..options import AttentionOptions, AttentionPatch, ModelOptions
from ..rows import Chunk, chunks_of, coupled_chunks_of
from .interface import (
    CallSize,
    LayerTokens,
    LayerView,
    Look,
    ReferenceHabits,
    Rule,
    Watch,
    repeat,
)
from .texts import TextsOfConds, TextWeights, text_places, text_tokens, with_texts_behind

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

CHANNELS = 4
"""Of the latents of all models of this kind that draw from text alone."""
PIXELS = 8
"""Pixels of the picture along a side of a latent pixel."""
PROMPT_TOKENS = 77
"""CLIP reads a prompt in chunks of so many tokens; the first of each is the start token."""
_STAGES = {"i": "input", "m": "middle", "o": "output"}
"""The letters of blocks, and what the host calls them."""
_GROUPS = {"down": "i", "mid": "m", "up": "o"}
"""What users call all blocks of a letter."""
_LETTERS = {stage: letter for letter, stage in _STAGES.items()}
_TEXT_LAYERS = ("attn2.to_k", "attn2.to_v")
_KEPT_PATCHES = ("input_", "output_")
"""Patches of these kinds act in a reference pass too, such as FreeU's."""

HABITS = ReferenceHabits({"subtle": 2.0, "normal": 3.0, "strong": 4.0}, inject_at=0.2)

Attention = Literal["attn1", "attn2"]
ChunkReader = Callable[[AttentionOptions, int, int], list[Chunk]]
PatchFactory = Callable[[Block, AttentionPatch], AttentionPatch]


@dataclass(frozen=True)
class UNet:
    """A `Backbone`. layers, native_side and all others: as there."""

    layers: tuple[AttentionBlock, ...]
    native_side: int
    pixels: int = PIXELS
    feature_bytes: int = 0
    context: None = None
    rotary: None = None
    index_step: float = 0.0
    spreads_words: bool = True
    habits: ReferenceHabits = HABITS

    def coordinates(self, latent_size: tuple[int, int], tokens: int) -> None:
        """Positions do not matter."""

    @classmethod
    def read(cls, model: ModelPatcher) -> UNet | None:
        """The UNet of a MODEL; None when it has none of this kind."""
        network = model.get_model_object("diffusion_model")
        if not all(
            hasattr(network, part) for part in ("input_blocks", "middle_block", "output_blocks")
        ):
            return None
        return cls(tuple(_attention_blocks(network)), _native_side(model))

    def parse_layers(self, text: str) -> tuple[Block, ...]:
        """Presets: 'fine', the two finest levels of the decoder (the paper's choice); 'decoder';
        'all'."""
        return parse_blocks(text, [layer.block for layer in self.layers], self._names)

    @cached_property
    def _names(self) -> BlockNames:
        decoder = [layer for layer in self.layers if layer.block.kind == "o"]
        finest = sorted({layer.downscale for layer in decoder})[:2]
        presets = {
            "fine": tuple(layer.block for layer in decoder if layer.downscale in finest),
            "decoder": tuple(layer.block for layer in decoder),
            "all": tuple(layer.block for layer in self.layers),
            **{
                name: tuple(layer.block for layer in self.layers if layer.block.kind == kind)
                for name, kind in _GROUPS.items()
                if any(layer.block.kind == kind for layer in self.layers)
            },
        }
        return BlockNames("".join(_STAGES), presets, "o6-11,m0,i7-8")

    def layout_blocks(self, latent_size: tuple[int, int]) -> tuple[Block, ...]:
        """As in the official code from half of the latent's size on, three levels (see
        `layout_downscales`)."""
        levels = layout_downscales(
            [layer.downscale for layer in self.layers], math.prod(latent_size)
        )
        return tuple(
            layer.block for level in levels for layer in self.layers if layer.downscale == level
        )

    def with_rule(
        self,
        options: ModelOptions,
        blocks: Collection[Block],
        conds: Collection[Any],
        batch: int,
        rule: Rule,
    ) -> ModelOptions:
        """Rows of `conds` by the rule, all others by what was in the slot."""

        def make(block: Block, previous: AttentionPatch) -> AttentionPatch:
            def patch(q: Tensor, k: Tensor, v: Tensor, extra: AttentionOptions) -> Tensor:
                token_grid(q, extra)
                chunks = chunks_of(extra, q.shape[0], batch)
                ours = [chunk for chunk in chunks if chunk.cond in conds]
                if not ours:
                    return previous(q, k, v, extra)
                out = torch.empty_like(q)
                others = [chunk for chunk in chunks if chunk.cond not in conds]
                _attend_chunks(out, q, k, v, extra, others, previous)
                for chunk in ours:
                    out[chunk.rows] = rule(_view(block, chunk, q, k, v, extra))
                return out

            return patch

        return _replace_slots(options, "attn1", blocks, make)

    def with_watch(self, options: ModelOptions, watch: Watch) -> ModelOptions:
        """What was in the slots goes on as it did."""
        if watch.image is not None:
            looking = _watching(watch, watch.image, chunks_of)
            options = _replace_slots(options, "attn1", watch.blocks, looking)
        if watch.text is not None:
            looking = _watching(watch, watch.text, coupled_chunks_of)
            options = _replace_slots(options, "attn2", watch.blocks, looking)
        return options

    def with_texts(self, options: ModelOptions, texts: TextsOfConds, batch: int) -> ModelOptions:
        """The texts' tokens go behind the prompt's before keys and values are made of them; what
        stood in the slots sees the prompt's alone."""
        behind = text_tokens(texts)
        weights = TextWeights(texts)

        def extend(
            n: Tensor, context: Tensor, value: Tensor, extra: AttentionOptions
        ) -> tuple[Tensor, Tensor, Tensor]:
            chunks = chunks_of(extra, n.shape[0], batch)
            value = context if value is None else value
            return (
                n,
                with_texts_behind(context, texts, chunks),
                with_texts_behind(value, texts, chunks),
            )

        def make(block: Block, previous: AttentionPatch) -> AttentionPatch:
            def patch(q: Tensor, k: Tensor, v: Tensor, extra: AttentionOptions) -> Tensor:
                prompt = slice(0, k.shape[1] - behind)
                out = previous(q, k[:, prompt], v[:, prompt], extra).clone()
                grid = token_grid(q, extra)
                for chunk in chunks_of(extra, q.shape[0], batch):
                    own = texts.get(chunk.cond, ())
                    places = text_places(own, prompt.stop)
                    for weight, place in zip(weights.at(chunk.cond, grid), places, strict=True):
                        _read(out, q, k, v, chunk.rows, (prompt, place), weight.to(q), extra)
                return out

            return patch

        inner = dict(options.get("transformer_options", {}))
        patches = dict(inner.get("patches", {}))
        patches["attn2_patch"] = [*patches.get("attn2_patch", ()), extend]
        inner["patches"] = patches
        blocks = [layer.block for layer in self.layers]
        return _replace_slots({**options, "transformer_options": inner}, "attn2", blocks, make)

    def reference_options(
        self, options: ModelOptions, blocks: Collection[Block], look: Look, is_bare: bool
    ) -> ModelOptions:
        """Of other nodes' parts APPLY_MODEL wrappers and patches of block inputs and outputs stay.
        A function wrapper does not: those of step caches mix up what they see of the picture with
        what they see of the references, and tiling is for the picture."""
        import comfy.patcher_extension as extension

        inner = dict(options.get("transformer_options", {}))
        apply_model = extension.WrappersMP.APPLY_MODEL
        around = {} if is_bare else inner.get("wrappers", {}).get(apply_model, {})
        inner["wrappers"] = {apply_model: around}
        inner["patches"] = {
            name: patches
            for name, patches in inner.get("patches", {}).items()
            if name.startswith(_KEPT_PATCHES)
        }

        def make(block: Block, previous: AttentionPatch) -> AttentionPatch:
            def capture(q: Tensor, k: Tensor, v: Tensor, extra: AttentionOptions) -> Tensor:
                look(_view(block, Chunk(None, slice(0, q.shape[0])), q, k, v, extra))
                return previous(q, k, v, extra)

            return capture

        inner["patches_replace"] = {}
        return _replace_slots({"transformer_options": inner}, "attn1", blocks, make)

    def reference_parts(self, options: ModelOptions) -> Sequence[Any]:
        """Wrappers and patches, in an order that does not change."""
        import comfy.patcher_extension as extension

        transformer_options = options.get("transformer_options", {})
        wrappers = transformer_options.get("wrappers", {}).get(extension.WrappersMP.APPLY_MODEL, {})
        patches = transformer_options.get("patches", {})
        lists = [
            *wrappers.values(),
            *(patches[name] for name in sorted(patches) if name.startswith(_KEPT_PATCHES)),
        ]
        return [part for parts in lists for part in parts]

    def image_attention(self, view: LayerView) -> Tensor:
        """Of the picture's own tokens: other nodes may have put more keys behind them."""
        return head_mean_attention(view.q, view.k[:, : view.q.shape[1]], view.heads)

    def text_attention(self, view: LayerView, length: int) -> Tensor:
        """Undoes what the host does to prompts of different lengths in one batch: it repeats the
        shorter one until both are as long."""
        shares = head_mean_attention(view.q, view.k, view.heads)
        tokens = shares.shape[-1]
        if tokens == length or tokens % length:
            return shares
        return torch.stack(shares.split(length, dim=-1)).sum(0)

    def background_columns(self, tokens: int) -> Sequence[int]:
        """The start tokens look at what no word describes."""
        return range(0, tokens, PROMPT_TOKENS)

    def tokens_of(self, layer: str, tokens: int, call: CallSize) -> LayerTokens | None:
        """Only keys and values of `attn2` are the prompt's; each level halves rows and columns."""
        if layer.endswith(_TEXT_LAYERS):
            return LayerTokens((0, tokens), (0, 0), (0, 0))
        rows, columns = call.latent_size
        while rows * columns > tokens and rows * columns > 1:
            rows, columns = -(-rows // 2), -(-columns // 2)
        if rows * columns != tokens:
            return None
        return LayerTokens((0, 0), (0, tokens), (rows, columns))

    def places_in_text(self, span: Sequence[int], length: int, tokens: int) -> list[int]:
        """In each repetition."""
        return repeat(span, length, tokens)


def _read(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: slice,
    keys: tuple[slice, slice],
    weight: Tensor,
    extra: AttentionOptions,
) -> None:
    """Lets places of `rows` read a text in the place of so much of the prompt. keys: the prompt's,
    the text's; weight: B N."""
    for picture, share in enumerate(weight):
        index = share.nonzero().flatten()
        if not len(index):
            continue
        row = slice(rows.start + picture, rows.start + picture + 1)
        queries = q[row, index]
        prompt, own = (plain_attention(queries, k[row, at], v[row, at], extra) for at in keys)
        out[row, index] += share[index, None] * (own - prompt)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, extra: AttentionOptions) -> Tensor:
    """What an unpatched layer does, bit for bit."""
    from comfy.ldm.modules.attention import optimized_attention

    result: Tensor = optimized_attention(
        q,
        k,
        v,
        extra["n_heads"],
        attn_precision=extra.get("attn_precision"),
        transformer_options=extra,
    )
    return result


def token_grid(q: Tensor, extra: AttentionOptions) -> tuple[int, int]:
    """Rows and columns of the layer's tokens. ValueError when another node has rearranged them,
    which is told before anything else that may look wrong then."""
    height, width = extra["activations_shape"][-2:]
    if q.shape[1] != height * width:
        raise ValueError(
            f"layer {_block(extra)}: {height}x{width} = {height * width} tokens expected,"
            f" {q.shape[1]} came. Another node rearranges the tokens (HyperTile, Token Merging):"
            " remove it, or leave this layer out"
        )
    return height, width


def _block(extra: AttentionOptions) -> Block:
    stage, index = extra["block"]
    return Block(_LETTERS[stage], index)


def _view(
    block: Block, chunk: Chunk, q: Tensor, k: Tensor, v: Tensor, extra: AttentionOptions
) -> LayerView:
    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return plain_attention(q, k, v, extra)
        return biased_attention(q, k, v, bias, extra["n_heads"])

    height, width = extra["original_shape"][-2:]
    rows = chunk.rows
    return LayerView(
        layer=(block, extra.get("block_index", 0)),
        cond=chunk.cond,
        q=q[rows],
        k=k[rows],
        v=v[rows],
        grid=token_grid(q, extra),
        latent_size=(height, width),
        heads=extra["n_heads"],
        attend=attend,
        foreign_keys=k.shape[1] - q.shape[1],
    )


def _watching(watch: Watch, look: Look, chunks: ChunkReader) -> PatchFactory:
    def make(block: Block, previous: AttentionPatch) -> AttentionPatch:
        def patch(q: Tensor, k: Tensor, v: Tensor, extra: AttentionOptions) -> Tensor:
            token_grid(q, extra)
            for chunk in chunks(extra, q.shape[0], watch.batch):
                if chunk.cond in watch.conds:
                    look(_view(block, chunk, q, k, v, extra))
            return previous(q, k, v, extra)

        return patch

    return make


def _replace_slots(
    options: ModelOptions, kind: str, blocks: Iterable[Block], make: PatchFactory
) -> ModelOptions:
    """New model options in which `make(block, previous)` stands in the slots of `blocks`.

    `previous` is the patch that was there, or the plain attention. Because this happens when
    sampling starts, patches that other nodes set after ours are taken along too.
    """
    transformer_options = options.get("transformer_options", {})
    replace = dict(transformer_options.get("patches_replace", {}))
    slots = dict(replace.get(kind, {}))
    for block in blocks:
        name = (_STAGES[block.kind], block.index)
        # A slot with a third index belongs to one transformer block and wins over the slot of the
        # whole UNet block.
        for slot in {name, *(slot for slot in slots if tuple(slot[:2]) == name)}:
            slots[slot] = make(block, slots.get(slot, plain_attention))
    replace[kind] = slots
    return {**options, "transformer_options": {**transformer_options, "patches_replace": replace}}


def _attend_chunks(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra: AttentionOptions,
    chunks: Sequence[Chunk],
    previous: AttentionPatch,
) -> None:
    """Lets `previous` fill some chunks of a batch's output, with options that speak of these
    only."""
    if not chunks:
        return
    size = q.shape[0] // len(extra["uuids"])
    places = [chunk.rows.start // size for chunk in chunks]
    options: AttentionOptions = {
        **extra,
        "uuids": [chunk.cond for chunk in chunks],
        "cond_or_uncond": [extra["cond_or_uncond"][place] for place in places],
    }
    q, k, v = (torch.cat([x[chunk.rows] for chunk in chunks]) for x in (q, k, v))
    for part, chunk in zip(previous(q, k, v, options).chunk(len(chunks)), chunks, strict=True):
        out[chunk.rows] = part


def _attention_blocks(network: Any) -> list[AttentionBlock]:
    blocks: list[AttentionBlock] = []
    downscale = 1

    def collect(block: Block, parts: Any) -> None:
        for part in parts:
            if hasattr(part, "transformer_blocks"):
                blocks.append(AttentionBlock(block, downscale, len(part.transformer_blocks)))

    for index, parts in enumerate(network.input_blocks):
        collect(Block("i", index), parts)
        if any(type(part).__name__ == "Downsample" for part in parts):
            downscale *= 2
    collect(Block("m", 0), network.middle_block)
    for index, parts in enumerate(network.output_blocks):
        collect(Block("o", index), parts)
        if any(type(part).__name__ == "Upsample" for part in parts):
            downscale //= 2
    return blocks


def _native_side(model: ModelPatcher) -> int:
    import comfy.model_base

    # Asked of the class: the host's instances answer every unknown name, with a warning.
    own = getattr(type(model.model.model_config), "native_side", None)
    if own is not None:
        return int(own)
    if isinstance(model.model, comfy.model_base.SDXL):
        return 1024
    is_sd2 = model.model.model_config.unet_config.get("context_dim") == 1024
    is_v = model.model.model_type == comfy.model_base.ModelType.V_PREDICTION
    return 768 if is_sd2 and is_v else 512


def attention_patches(
    image: Mapping[Block, AttentionPatch], text: Mapping[Block, AttentionPatch]
) -> dict[str, Any]:
    """The host's transformer options in which patches draw some blocks: image, in place of what the
    picture's tokens see of each other; text, of the prompt."""
    slots = {
        kind: {(_STAGES[block.kind], block.index): patch for block, patch in patches.items()}
        for kind, patches in (("attn1", image), ("attn2", text))
    }
    return {"patches_replace": slots}
