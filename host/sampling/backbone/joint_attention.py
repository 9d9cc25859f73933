"""One attention in which text and picture are together: what rules see of it, and the same with
texts of regions behind the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ....magic.blocks import Block
from ....magic.positions import Coordinates
from ..attention import attention_with_bias, biased_attention
from ..rows import Chunk, chunks_of
from .interface import LayerView
from .model_call import AttentionCall
from .sequence import TokenSequence
from .texts import TextsOfConds, TextWeights, text_places

Attention = Callable[..., Tensor]
"""The host's attention: (q, k, v, heads, mask, ...) -> B N C."""


@dataclass(frozen=True, eq=False)
class JointAttention:
    """One joint attention of a model call.

    block: of the model; sequence: its tokens; call: what it is called with; function: the host's,
    or whoever stood there before, as the host would call it.
    """

    block: Block
    sequence: TokenSequence
    call: AttentionCall
    function: Attention

    def plain(
        self, rows: Sequence[slice], queries: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """What stood there before, for some rows, all queries or some, and all keys or some:
        B N C."""
        call = self.call
        q, k, v = (torch.cat([x[part] for part in rows]) for x in (call.q, call.k, call.v))
        q = q if queries is None else q[:, :, queries]
        if keys is not None:
            k, v = k[:, :, keys], v[:, :, keys]
        rest = {**call.rest, "transformer_options": self._options_of(rows)}
        rest.update(skip_reshape=True, skip_output_reshape=False)
        mask = call.mask_of(rows, queries, keys)
        return self.function(q, k, v, call.heads, mask=mask, **rest)

    def _options_of(self, rows: Sequence[slice]) -> Mapping[str, Any]:
        """The options, with prompts of these rows only."""
        options, size = self.call.options, rows[0].stop - rows[0].start
        places = [part.start // size for part in rows]
        lists = {
            name: [options[name][place] for place in places]
            for name in ("uuids", "cond_or_uncond")
            if len(options.get(name, ())) * size == self.call.q.shape[0]
        }
        return {**options, **lists}

    def view(self, chunk: Chunk, coordinates: Coordinates) -> LayerView:
        """What the layer sees of one prompt."""
        call, rows, image = self.call, chunk.rows, self.sequence.image
        key_bias = self._shared_bias(rows)
        own_k, own_v = _joined_heads(call.k[rows]), _joined_heads(call.v[rows])
        own_q = call.q[rows] if self.sequence.is_text else call.q[rows, :, image]

        def with_host_bias(
            q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, first: Tensor | None
        ) -> Tensor:
            """first: the host's bias of the first of the keys."""
            if first is not None:
                host = torch.cat([first, first.new_zeros(k.shape[1] - len(first))]).to(q)
                bias = host if bias is None else bias + host
            return self._attend(q, k, v, bias)

        def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            return with_host_bias(q, k, v, bias, key_bias)

        def attend_to(
            q: Tensor, pictures: slice, keys: Tensor | None, bias: Tensor | None
        ) -> Tensor:
            k, v, own = own_k[pictures], own_v[pictures], key_bias
            if keys is not None:
                k, v, own = k[:, keys], v[:, keys], None if own is None else own[keys]
            if own is not None:
                bias = own if bias is None else bias + own
            return self._attend(q, k, v, None if bias is None else bias.to(q))

        def beside(part: slice, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            others = self.sequence.others(own_k.shape[1], own_k.device)
            k, v = (
                torch.cat([own[part][:, others].to(extra), extra], dim=1)
                for own, extra in ((own_k, k), (own_v, v))
            )
            if bias is not None:
                bias = torch.cat([bias.new_zeros(len(others)), bias])
            return with_host_bias(q, k, v, bias, None if key_bias is None else key_bias[others])

        return LayerView(
            layer=(self.block, 0),
            cond=chunk.cond,
            q=_joined_heads(own_q),
            k=own_k,
            v=own_v,
            grid=coordinates.grid,
            latent_size=call.model.size.latent_size,
            heads=call.heads,
            attend=attend,
            image=image,
            text=self.sequence.text,
            references=self.sequence.references,
            attend_to=attend_to,
            coordinates=coordinates,
            beside=beside,
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """B N C; without a bias by what stood there before."""
        if bias is not None:
            return biased_attention(q, k, v, bias, self.call.heads)
        rest = {**self.call.rest, "skip_reshape": False, "skip_output_reshape": False}
        return self.function(q, k, v, self.call.heads, mask=None, **rest)

    def isolate(self, rows: slice) -> Sequence[tuple[Tensor, Tensor]]:
        """The references' places, one after the other, with what they get of some rows when they do
        not see each other: B N C."""
        q, tokens, places = self.call.q, self.call.k.shape[2], self.sequence.references
        parts = []
        for own in places:
            if own.stop > q.shape[2]:
                # Their own rows were drawn in an earlier call.
                break
            is_seen = torch.ones(tokens, dtype=torch.bool, device=q.device)
            for place in places:
                is_seen[place] = place == own
            queries = torch.arange(own.start, own.stop, device=q.device)
            parts.append((queries, self.plain([rows], queries, is_seen.nonzero().flatten())))
        return parts

    def _shared_bias(self, rows: slice) -> Tensor | None:
        """The host's mask of some rows as one bias a key, which is all that prompts need."""
        mask = self.call.mask_of([rows])
        if mask is None:
            return None
        by_query = _as_bias(mask).reshape(-1, mask.shape[-1])
        if not bool((by_query == by_query[:1]).all()):
            raise ValueError(
                f"layer {self.block}: an attention mask that differs between places of the picture"
                " cannot be put together with references or regions: remove the node that sets it"
            )
        return by_query[0].float()


@dataclass(frozen=True, eq=False)
class AttentionWithTexts:
    """One attention of a model call with texts of regions behind its prompt.

    sequence: its tokens, the texts' among the prompt's; prompt: how many are the prompt's own;
    behind: how many of texts follow; grid: rows and columns of the picture's; call: what it is
    called with; function: the host's; plain: whoever stood there before.
    """

    sequence: TokenSequence
    prompt: int
    behind: int
    grid: tuple[int, int]
    call: AttentionCall
    function: Attention
    plain: Attention

    def attend(self, texts: TextsOfConds, weights: TextWeights, batch: int) -> Tensor:
        """What comes out: B N C."""
        call = self.call
        queries, keys = (self._without_texts(x.shape[2]) for x in (call.q, call.k))
        is_joint = self.sequence.image.start < self.sequence.end
        out = call.q.new_zeros(call.q.shape[0], call.q.shape[2], call.heads * call.v.shape[-1])
        out[:, queries] = self.plain(
            call.q[:, :, queries],
            call.k[:, :, keys],
            call.v[:, :, keys],
            call.heads,
            mask=call.mask_of(None, queries, keys),
            **self._beside,
        )
        for chunk in chunks_of(call.options, call.q.shape[0], batch):
            own = texts.get(chunk.cond, ())
            places = text_places(own, self.prompt)
            shares: Sequence[Tensor | None] = weights.at(chunk.cond, self.grid)
            for place, share in zip(places, shares if is_joint else [None] * len(own), strict=True):
                for picture in range(batch):
                    row = chunk.rows.start + picture
                    self._read(out, row, place, None if share is None else share[picture].to(out))
        return out

    def _read(self, out: Tensor, row: int, text: slice, share: Tensor | None) -> None:
        """Lets a text see itself and its region, and the places of that read it. share: N, how much
        each does; None where there is no picture."""
        own = torch.arange(text.start, text.stop, device=out.device)
        if share is None:
            out[row, own] = self._attend(row, own, own, None)
            return
        region = share.nonzero().flatten()
        image = region + self.sequence.image.start
        bias = torch.cat([share.new_zeros(len(own)), share[region].log()])
        out[row, own] = self._attend(row, own, torch.cat([own, image]), bias)
        if not len(region):
            return
        others = torch.arange(self.sequence.image.start, self.call.k.shape[2], device=out.device)
        prompt = torch.arange(self.prompt, device=out.device)
        by_text, by_prompt = (
            self._attend(row, image, torch.cat([words, others]), None) for words in (own, prompt)
        )
        out[row, image] += share[region, None] * (by_text - by_prompt)

    def _attend(self, row: int, queries: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
        """Some queries of a row to some keys, past what other nodes set: N C. bias: of each key."""
        call, rows = self.call, slice(row, row + 1)
        q, k, v = (x[rows, :, at] for x, at in ((call.q, queries), (call.k, keys), (call.v, keys)))
        mask = call.mask_of([rows], queries, keys)
        if bias is None and mask is None:
            return self.function(q, k, v, call.heads, mask=None, **self._beside)[0]
        total = q.new_zeros(1, 1, 1, len(keys))
        if mask is not None:
            total = _as_bias(mask if mask.ndim == 4 else mask.reshape(1, 1, -1, len(keys))).to(q)
        if bias is not None:
            total = total + bias.to(q)
        q, k, v = (_joined_heads(x) for x in (q, k, v))
        return attention_with_bias(q, k, v, total, call.heads)[0]

    @cached_property
    def _beside(self) -> Mapping[str, Any]:
        """What the host's attention gets beside q, k and v as they are here."""
        return {**self.call.rest, "skip_reshape": True, "skip_output_reshape": False}

    def _without_texts(self, tokens: int) -> Tensor:
        """The places of the first tokens that are none of a text."""
        places = torch.arange(tokens, device=self.call.q.device)
        return places[(places < self.prompt) | (places >= self.prompt + self.behind)]


def _as_bias(mask: Tensor) -> Tensor:
    """A host's mask as what is added to logits."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))


def _joined_heads(x: Tensor) -> Tensor:
    """B H N D -> B N C."""
    return x.transpose(1, 2).flatten(2)
