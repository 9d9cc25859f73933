"""Transformers in which text and picture share one attention: Flux, Qwen-Image, Z-Image and others;
and those in which each block has one of the picture by itself and one to the text (Anima).

The host lets others stand in for its attention function (`optimized_attention_override`), one for
all layers. Whoever stood there before is called for all that is not ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....magic.blocks import AttentionBlock, Block, BlockNames, parse_blocks
from ....magic.concepts import Level
from ....magic.layout import column_attention
from ....magic.positions import Coordinates, Rotary, RotaryAxis
from ...text.context import ContextTokens
from ..options import ModelOptions
from ..rows import Chunk, chunks_of
from .families import Family, family_of
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
from .joint_attention import Attention, AttentionWithTexts, JointAttention
from .model_call import CALL, FIRST, AttentionCall, ModelCall, tell_call
from .sequence import TokenOrder, TokenSequence
from .texts import TextsOfConds, TextWeights, text_tokens, with_texts_behind

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_OVERRIDE = "optimized_attention_override"
_GIVEN = "reference_image_num_tokens"
"""The host's name of how many tokens each given picture has."""
_IS_TEXT = "magicportrait_is_text"
"""Whether an attention is the one to the text, once one of ours has found that out."""
_TEXTS = "magicportrait_texts"
_STRENGTHS: Mapping[Level, float] = {"subtle": 0.5, "normal": 1.0, "strong": 2.0}
_STYLE_STRENGTHS: Mapping[Level, float] = {"subtle": -1.5, "normal": 0.0, "strong": 1.5}
_TEXT_NAMES = (
    *("txt", "context", "cap_embedder", "add_q", "add_k", "add_v", "to_add_out"),
    *("to_q_t", "to_k_t", "to_v_t", "to_out_t", "ff_t."),
    *("cross_attn.k_proj", "cross_attn.v_proj"),
)
"""Parts of the names of layers that see the prompt alone."""
_VIDEO_THETA = 10000.0
"""Of the host's embedder of videos, before its factors."""
_LAYOUT_LAYERS = 8
"""From so many the layout is read, at even distances: neighbours say the same."""


Act = Callable[[JointAttention], "Tensor | None"]
"""What an attention gives: B N C, or None to leave it to what stood there before."""


@dataclass(frozen=True)
class JointTransformer:
    """A `Backbone`. layers, pixels, native_side: as there; reference_side: pixels along a side of
    the pictures that it is given; family: its record; rotary: how it turns queries and keys;
    tokens: how it lays them out."""

    family: Family
    layers: tuple[AttentionBlock, ...]
    pixels: int
    native_side: int
    reference_side: int
    rotary: Rotary | None
    tokens: TokenOrder
    feature_bytes: int = 0
    context: ContextTokens = field(default_factory=ContextTokens)
    spreads_words: bool = False

    @classmethod
    def read(cls, model: ModelPatcher) -> JointTransformer | None:
        """The transformer of a MODEL; None when it is of no family that we know."""
        import comfy.utils

        family = family_of(model)
        if family is None:
            return None
        network = model.get_model_object("diffusion_model")
        if family.multiple and not hasattr(network, family.multiple):
            # An older host's class, which lays its tokens out in another way.
            return None
        rotary, patch = None, int(getattr(network, family.patch))
        if family.embedder is not None:
            rotary = _rotary_of(getattr(network, family.embedder), family)
        heads = int(comfy.utils.get_attr(network, family.heads))
        # Asked of the class: the host's instances answer every unknown name, with a warning.
        config = type(model.model.model_config)
        hidden = (
            heads * rotary.head
            if rotary is not None
            else int(comfy.utils.get_attr(network, "hidden_size"))
        )
        native_side = int(getattr(config, "native_side", family.native_side))
        return cls(
            family=family,
            layers=tuple(
                AttentionBlock(Block(kind.letter, index), patch)
                for kind in family.kinds
                for index in range(len(getattr(network, kind.attribute)))
            ),
            pixels=int(getattr(model.model.latent_format, "spacial_downscale_ratio", 8)),
            native_side=native_side,
            reference_side=int(getattr(config, "reference_side", native_side)),
            rotary=rotary,
            tokens=TokenOrder(
                family.order,
                patch,
                (family.multiple and getattr(network, family.multiple, None)) or 1,
                getattr(network, "siglip_embedder", None) is not None,
            ),
            feature_bytes=2 * hidden * _element_size(model),
            context=ContextTokens(
                getattr(config, "context_tokens", family.tokens),
                family.has_clip,
                family.text_sees_pictures,
                family.behind,
                family.is_inside,
            ),
        )

    @property
    def habits(self) -> ReferenceHabits:
        """Joint attention has fewer keys that compete with a reference's than a UNet's layers have
        steps: what a UNet needs is far too strong."""
        return ReferenceHabits(_STRENGTHS, 0.0, self.family.guidance, _STYLE_STRENGTHS, "late")

    @property
    def index_step(self) -> float:
        """Of the family."""
        return self.family.index_step

    def coordinates(self, latent_size: tuple[int, int], tokens: int) -> Coordinates:
        """By the family's rule."""
        return self._coordinates_in(CallSize(latent_size, tokens))

    def parse_layers(self, text: str) -> tuple[Block, ...]:
        """Presets: 'fine', what references had best act in: the last two thirds of the depth, where
        places have been settled (Flux.1: its single blocks); 'decoder' is the same, so that what is
        usual on UNets means something; 'early', 'middle', 'late', a third each; 'all'; the kinds by
        name, where there are two."""
        return parse_blocks(text, [layer.block for layer in self.layers], self._names)

    @cached_property
    def _names(self) -> BlockNames:
        blocks = tuple(layer.block for layer in self.layers)
        first, second = len(blocks) // 3, len(blocks) * 2 // 3
        presets = {
            "fine": blocks[first:],
            "early": blocks[: max(1, first)],
            "middle": blocks[first : max(first + 1, second)],
            "late": blocks[second:],
            "all": blocks,
        }
        if len(self.family.kinds) > 1:
            for kind in self.family.kinds:
                presets[kind.name] = tuple(b for b in blocks if b.kind == kind.letter)
            presets["fine"] = presets[self.family.kinds[-1].name]
        presets["decoder"] = presets["fine"]
        letters = "".join(kind.letter for kind in self.family.kinds)
        return BlockNames(letters, presets, ",".join(f"{letter}0-3" for letter in letters))

    def layout_blocks(self, latent_size: tuple[int, int]) -> tuple[Block, ...]:
        """From the last two thirds of the depth: docs/model_families.md has what was measured."""
        depth = len(self.layers)
        first, last = depth // 3, depth - 1
        count = min(_LAYOUT_LAYERS, last - first + 1)
        places = {round(first + i * (last - first) / max(1, count - 1)) for i in range(count)}
        return tuple(self.layers[place].block for place in sorted(places))

    def with_rule(
        self,
        options: ModelOptions,
        blocks: Collection[Block],
        conds: Collection[Any],
        batch: int,
        rule: Rule,
        is_isolated: bool = False,
    ) -> ModelOptions:
        """Rows of `conds` by the rule where they are the picture's; text keeps its own attention,
        as all other rows do. is_isolated: pictures that an edit model is given do not see each
        other; else they keep their own too."""

        def act(attention: JointAttention) -> Tensor | None:
            if attention.sequence.is_text:
                return None
            call, image = attention.call, attention.sequence.image
            q = call.q
            chunks = chunks_of(call.options, q.shape[0], batch)
            ours = [chunk for chunk in chunks if chunk.cond in conds]
            if not ours:
                return None
            out = q.new_empty(q.shape[0], q.shape[2], q.shape[1] * call.v.shape[-1])
            rest = [chunk.rows for chunk in chunks if chunk.cond not in conds]
            if rest:
                for rows, part in zip(rest, attention.plain(rest).chunk(len(rest)), strict=True):
                    out[rows] = part
            others = attention.sequence.others(q.shape[2], q.device)
            for chunk in ours:
                if len(others):
                    out[chunk.rows, others] = attention.plain([chunk.rows], others)
                if is_isolated and len(attention.sequence.references) > 1:
                    for places, part in attention.isolate(chunk.rows):
                        out[chunk.rows, places] = part
                view = attention.view(chunk, self._coordinates(attention))
                out[chunk.rows, image] = rule(view).to(out)
            return out

        return self._overridden(options, blocks, act, options)

    def with_watch(self, options: ModelOptions, watch: Watch) -> ModelOptions:
        """What stood there before goes on as it did."""

        def act(attention: JointAttention) -> Tensor | None:
            looks = [watch.image, watch.text]
            if self.family.has_text_apart:
                looks = [watch.text if attention.sequence.is_text else watch.image]
            call = attention.call
            for chunk in chunks_of(call.options, call.q.shape[0], watch.batch):
                if chunk.cond in watch.conds:
                    view = attention.view(chunk, self._coordinates(attention))
                    for look in looks:
                        if look is not None:
                            look(view)
            return None

        return self._overridden(options, watch.blocks, act, options)

    def with_texts(self, options: ModelOptions, texts: TextsOfConds, batch: int) -> ModelOptions:
        """The texts' tokens go through the model behind the prompt's. Whatever else stands in its
        attention sees the sequence without them."""
        import comfy.patcher_extension as extension

        self.check_reads_texts()
        inner = dict(options.get("transformer_options", {}))
        previous, weights = inner.get(_OVERRIDE), TextWeights(texts)

        def override(func: Attention, *args: Any, **kwargs: Any) -> Tensor:
            def plain(*a: Any, **kw: Any) -> Tensor:
                return func(*a, **kw) if previous is None else previous(func, *a, **kw)

            longer = self._with_texts(func, plain, args, kwargs, texts, batch)
            if longer is None:
                return plain(*args, **kwargs)
            return longer.attend(texts, weights, batch)

        def extend(
            executor: Callable[..., Tensor],
            x: Tensor,
            t: Tensor,
            c_concat: Tensor | None = None,
            c_crossattn: Tensor | None = None,
            control: Any = None,
            transformer_options: Mapping[str, Any] | None = None,
            **kwargs: Any,
        ) -> Tensor:
            call_options: Any = transformer_options or {}
            context, mask = c_crossattn, kwargs.get("attention_mask")
            if context is not None:
                is_of_text = isinstance(mask, Tensor) and mask.shape[-1] == context.shape[1]
                chunks = chunks_of(call_options, x.shape[0], batch)
                context = with_texts_behind(context, texts, chunks)
                if isinstance(mask, Tensor) and is_of_text:
                    # Of the prompt's tokens: 1, or added 0, for those that are there.
                    there = 0 if mask.is_floating_point() else 1
                    more = mask.new_full((*mask.shape[:-1], text_tokens(texts)), there)
                    kwargs["attention_mask"] = torch.cat([mask, more], dim=-1)
            return executor(x, t, c_concat, context, control, transformer_options, **kwargs)

        inner[_OVERRIDE] = override
        inner.setdefault(FIRST, self._first)
        inner["wrappers"] = {kind: dict(keys) for kind, keys in inner.get("wrappers", {}).items()}
        around = inner["wrappers"].setdefault(extension.WrappersMP.APPLY_MODEL, {})
        around.setdefault(CALL, [tell_call])
        # Within the other: attention is told of the prompt's own tokens.
        around[_TEXTS] = [extend]
        return {**options, "transformer_options": inner}

    def check_reads_texts(self) -> None:
        """ValueError for a family in which no text can stand beside the prompt."""
        if self.family.order != "text, picture, references" or self.family.has_text_of_its_own:
            raise ValueError(
                f"texts of regions do not work on {self.family.model}, where a text cannot stand"
                " behind the prompt without moving the picture or being read by another encoder:"
                " use a UNet, Flux, Flux.2, Qwen-Image, Krea 2, Chroma or SD3.5, or leave the"
                " Layout Conditioning nodes out"
            )

    def _with_texts(
        self,
        function: Attention,
        plain: Attention,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        texts: TextsOfConds,
        batch: int,
    ) -> AttentionWithTexts | None:
        """A call of the host's attention on a sequence with texts behind its prompt; None when it
        is none."""
        call = AttentionCall.read(args, kwargs)
        if call is None:
            return None
        size, behind, tokens = call.model.size, text_tokens(texts), call.k.shape[2]
        prompt = size.context
        longer = dataclasses.replace(size, context=prompt + behind)
        sequence = self._sequence(longer, tokens, call.options)
        if sequence is None:
            is_text = call.q.shape[2] == tokens == prompt + behind
            has_rows = call.q.shape[0] == len(call.options.get("uuids", ())) * batch
            if not (self.family.text_attends and is_text and has_rows):
                return None
            sequence = TokenSequence(slice(0, tokens), slice(tokens, tokens), (), tokens)
        grid = self.tokens.grid(size.latent_size)
        return AttentionWithTexts(sequence, prompt, behind, grid, call, function, plain)

    def reference_options(
        self, options: ModelOptions, blocks: Collection[Block], look: Look, is_bare: bool
    ) -> ModelOptions:
        """Of other nodes' parts APPLY_MODEL wrappers stay; attention is the host's own."""
        import comfy.patcher_extension as extension

        inner = dict(options.get("transformer_options", {}))
        apply_model = extension.WrappersMP.APPLY_MODEL
        around = {} if is_bare else inner.get("wrappers", {}).get(apply_model, {})
        inner.update(wrappers={apply_model: around}, patches={}, patches_replace={})
        inner.pop(_OVERRIDE, None)

        def act(attention: JointAttention) -> Tensor | None:
            if attention.sequence.is_text:
                return None
            everything = Chunk(None, slice(0, attention.call.q.shape[0]))
            look(attention.view(everything, self._coordinates(attention)))
            return None

        return self._overridden({"transformer_options": inner}, blocks, act, {})

    def reference_parts(self, options: ModelOptions) -> Sequence[Any]:
        """Wrappers, in an order that does not change."""
        import comfy.patcher_extension as extension

        wrappers = options.get("transformer_options", {}).get("wrappers", {})
        around = wrappers.get(extension.WrappersMP.APPLY_MODEL, {})
        return [part for parts in around.values() for part in parts]

    def image_attention(self, view: LayerView) -> Tensor:
        """Of the picture's own tokens, renormalised."""
        return column_attention(view.q, view.k[:, view.image], view.heads)

    def text_attention(self, view: LayerView, length: int) -> Tensor:
        """Renormalised over all of the text, padding included; what comes back are the columns of
        the prompt's own tokens, and all of them where a layer's text is not the conditioning's."""
        shares = column_attention(view.q, view.k[:, view.text], view.heads)
        if self.family.has_text_of_its_own:
            return shares
        if self.family.text_padding == "left":
            return shares[..., -length:]
        return shares[..., :length]

    def word_attention(
        self, view: LayerView, words: Sequence[Sequence[int]], length: int
    ) -> Tensor:
        """How much of its attention each of the picture's tokens, in each head, gives to some words
        of a prompt of `length` tokens: B heads K N, columns of the joint softmax, with gradient.
        words: the positions of each word's tokens, of K words.

        What attention gives for values of 1 at a word and 0 elsewhere is this word's share: so the
        host's own attention computes it, without a matrix of all pairs.
        """
        first = view.text.start
        if self.family.text_padding == "left":
            first = view.text.stop - length
        values = torch.zeros_like(view.k).unflatten(-1, (view.heads, -1))  # B M heads c
        for channel, positions in enumerate(words):
            values[:, [first + position for position in positions], :, channel] = 1
        shares = view.attend(view.q, view.k, values.flatten(2), None)  # B N C
        by_head: Tensor = shares.unflatten(-1, (view.heads, -1))[..., : len(words)]
        return by_head.permute(0, 2, 3, 1)

    def background_columns(self, tokens: int) -> Sequence[int]:
        """No token is known to mark it."""
        return ()

    def tokens_of(self, layer: str, tokens: int, call: CallSize) -> LayerTokens | None:
        """Layers see the text, the picture, or both as in attention: by how many tokens there are,
        and where text and picture have as many, by the layer's name. Some models leave given
        pictures out."""
        grid, given = self.tokens.grid(call.latent_size), call.given.sizes
        image, text = grid[0] * grid[1], self.tokens.with_padding(call.context)
        if self.family.has_text_of_its_own:
            return self._tokens_apart(layer, tokens, call, grid)
        pictures = {image, image + sum(map(self.tokens.tokens, given))}
        is_text = tokens in (call.context, text)
        if self.family.order == "text, picture, padding":
            # Given pictures stand before the one that is made, texts of theirs beside its own: how
            # many there are does not tell whose tokens a layer of one kind alone has.
            pictures = set() if given else {image, self.tokens.with_padding(image)}
            is_text = is_text and not given
        if is_text and not (tokens in pictures and not _of_text(layer)):
            return LayerTokens((0, tokens), (0, 0), (0, 0))
        if tokens in pictures:
            return LayerTokens((0, 0), (0, image), grid)
        sequence = self.tokens.read(call, tokens, None)
        if sequence is None:
            return None
        own, words = sequence.image, sequence.text
        return LayerTokens((words.start, words.stop), (own.start, own.stop), grid)

    def _tokens_apart(
        self, layer: str, tokens: int, call: CallSize, grid: tuple[int, int]
    ) -> LayerTokens | None:
        """The same where a layer's text is not the conditioning's. What sees one of several text
        encoders alone is not known."""
        image, text = grid[0] * grid[1], call.context + call.behind
        if tokens == text and (tokens != image or _of_text(layer)):
            return LayerTokens((0, tokens), (0, 0), (0, 0))
        if tokens == image:
            return LayerTokens((0, 0), (0, image), grid)
        if self.family.has_text_apart or tokens != image + text:
            return None
        return LayerTokens((image, tokens), (0, image), grid)

    def places_in_text(self, span: Sequence[int], length: int, tokens: int) -> list[int]:
        """Behind the padding of families that pad on the left."""
        if self.family.has_text_of_its_own:
            return list(span)
        if self.family.text_padding == "left":
            return [place + tokens - length for place in span]
        return list(span) if self.family.text_padding == "right" else repeat(span, length, tokens)

    def _coordinates(self, attention: JointAttention) -> Coordinates:
        """Where the picture's tokens lie."""
        return self._coordinates_in(attention.call.model.size)

    def _coordinates_in(self, call: CallSize) -> Coordinates:
        index = self.tokens.index_of(call) if self.family.text_comes_first else 0
        grid = self.tokens.grid(call.latent_size)
        return Coordinates(grid, float(index), self.family.is_centred)

    def _sequence(
        self, call: CallSize, tokens: int, options: Mapping[str, Any]
    ) -> TokenSequence | None:
        """Which of so many tokens are what; None when text and pictures do not make so many."""
        return self.tokens.read(call, tokens, options.get(_GIVEN))

    def _sequence_apart(
        self, call: ModelCall, queries: int, keys: int, options: Mapping[str, Any]
    ) -> TokenSequence | None:
        """In a block the picture looks at itself, then at the text."""
        index, is_text = options.get("block_index"), options.get(_IS_TEXT)
        is_second = call.image_block == index if is_text is None else bool(is_text)
        sequence = self.tokens.read_apart(call.size, queries, keys, is_second)
        if is_text is None and sequence is not None:
            call.image_block = None if sequence.is_text else index
        return sequence

    def _block(self, call: ModelCall, options: Mapping[str, Any]) -> Block | None:
        """Which block attends; hosts before block_index are counted along with."""
        if "block_index" in options and self.family.has_text_apart:
            return Block(self.family.kinds[0].letter, options["block_index"])
        if "block_index" in options:
            letters = {kind.name: kind.letter for kind in self.family.kinds}
            letter = letters.get(options.get("block_type", ""))
            return None if letter is None else Block(letter, options["block_index"])
        call.attentions += 1
        blocks = [layer.block for layer in self.layers]
        return blocks[call.attentions - 1] if call.attentions <= len(blocks) else None

    @cached_property
    def _first(self) -> Mapping[str, int]:
        """The place in `layers` of each kind's first block, by the kind's name in the host's
        replacements of blocks."""
        letters = [layer.block.kind for layer in self.layers]
        return {f"{kind.name}_block": letters.index(kind.letter) for kind in self.family.kinds}

    def _attention(
        self, function: Attention, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> JointAttention | None:
        """A call of the host's attention as a joint attention; None when it is none."""
        call = AttentionCall.read(args, kwargs)
        if call is None:
            return None
        options, queries, tokens = call.options, call.q.shape[2], call.k.shape[2]
        of_pictures = sum(options.get(_GIVEN) or ())
        is_joint = queries in (tokens, tokens - of_pictures) or self.family.has_text_apart
        if call.q.shape[:2] != call.k.shape[:2] or not is_joint:
            return None
        sequence = (
            self._sequence_apart(call.model, queries, tokens, options)
            if self.family.has_text_apart
            else self._sequence(call.model.size, tokens, options)
        )
        if sequence is None:
            # Others may put keys beside those of the text.
            is_of_text = self.family.has_text_apart and tokens != queries
            if "block_index" in options and not is_of_text:
                self._refuse(call.model.size, tokens, options)
            return None
        block = self._block(call.model, options)
        if block is None:
            return None
        kinds = {kind.letter: kind.name for kind in self.family.kinds}
        # So that others of ours below this one do not count it again.
        name: dict[str, Any] = {"block_type": kinds[block.kind], "block_index": block.index}
        if self.family.has_text_apart:
            name[_IS_TEXT] = sequence.is_text
        rest = {**call.rest, "transformer_options": {**options, **name}}
        return JointAttention(block, sequence, dataclasses.replace(call, rest=rest), function)

    def _refuse(self, call: CallSize, tokens: int, options: Mapping[str, Any]) -> None:
        rows, columns = self.tokens.grid(call.latent_size)
        raise ValueError(
            f"layer {options['block_index']}: {call.context} tokens of text and {rows}x{columns} of"
            f" the picture expected, {tokens} tokens came. Another node adds or rearranges tokens,"
            " or the prompt has reference latents that this family of models puts elsewhere:"
            " remove it, or leave this layer out"
        )

    def _overridden(
        self, options: ModelOptions, blocks: Collection[Block], act: Act, before: ModelOptions
    ) -> ModelOptions:
        """Model options in which `act` is asked for the joint attentions of these blocks. Where it
        gives None, and everywhere else, stands what stood there before."""
        import comfy.patcher_extension as extension

        inner = dict(options.get("transformer_options", {}))
        previous = before.get("transformer_options", {}).get(_OVERRIDE)

        def override(func: Attention, *args: Any, **kwargs: Any) -> Tensor:
            def plain(*a: Any, **kw: Any) -> Tensor:
                return func(*a, **kw) if previous is None else previous(func, *a, **kw)

            attention = self._attention(plain, args, kwargs)
            if attention is None:
                return plain(*args, **kwargs)
            result = act(attention) if attention.block in blocks else None
            if result is None:
                kwargs["transformer_options"] = attention.call.options
                return plain(*args, **kwargs)
            return result

        inner[_OVERRIDE] = override
        inner[FIRST] = self._first
        inner["wrappers"] = {kind: dict(keys) for kind, keys in inner.get("wrappers", {}).items()}
        around = inner["wrappers"].setdefault(extension.WrappersMP.APPLY_MODEL, {})
        around[CALL] = [tell_call]
        return {**options, "transformer_options": inner}


def _rotary_of(embedder: Any, family: Family) -> Rotary:
    """How a network's embedder of positions turns: one theta for all axes, or time, rows and
    columns, each stretched by a factor of its own (the host's embedder of videos)."""
    if hasattr(embedder, "axes_dim"):
        return Rotary.of(embedder.axes_dim, embedder.theta, family.pairing)
    axes = (
        (embedder.dim_temporal_range, embedder.t_ntk_factor),
        (embedder.dim_spatial_range, embedder.h_ntk_factor),
        (embedder.dim_spatial_range, embedder.w_ntk_factor),
    )
    return Rotary(
        tuple(RotaryAxis(2 * len(pairs), _VIDEO_THETA * float(factor)) for pairs, factor in axes),
        family.pairing,
    )


def _of_text(layer: str) -> bool:
    """Whether a layer's name says that its tokens are the prompt's."""
    return any(part in layer for part in _TEXT_NAMES)


def _element_size(model: ModelPatcher) -> int:
    """Bytes of a number that the model computes with."""
    kind = getattr(model.model, "get_dtype_inference", model.model.get_dtype)()
    return int(torch.empty(0, dtype=kind).element_size())
