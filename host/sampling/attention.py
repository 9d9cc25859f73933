"""The host's attention, and how patches are put around patches that are already there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...magic.blocks import Block

AttentionPatch = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]
PatchFactory = Callable[[Block, AttentionPatch], AttentionPatch]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """What an unpatched layer does, bit for bit."""
    from comfy.ldm.modules.attention import optimized_attention

    return optimized_attention(
        q,
        k,
        v,
        extra_options["n_heads"],
        attn_precision=extra_options["attn_precision"],
        transformer_options=extra_options,
    )


def biased_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, extra_options: dict[str, Any]
) -> Tensor:
    """Attention with a bias on the keys. q: B N C; k, v: B M C; bias: M."""
    if bias is None:
        return plain_attention(q, k, v, extra_options)
    heads = (x.unflatten(-1, (extra_options["n_heads"], -1)).transpose(1, 2) for x in (q, k, v))
    # Sage and Flash attention ignore or refuse a bias, and cuDNN, which the host prefers, finds no
    # plan for some that are broadcast.
    kernels = (
        sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
        if q.is_cuda
        else contextlib.nullcontext()
    )
    with kernels:
        # The bias is a view over heads and queries: it costs no memory.
        return (
            F.scaled_dot_product_attention(*heads, attn_mask=bias[None, None, None, :])
            .transpose(1, 2)
            .flatten(2)
        )


def token_grid(q: Tensor, extra_options: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of the layer's tokens. ValueError when another node has rearranged the
    tokens."""
    height, width = extra_options["activations_shape"][-2:]
    if q.shape[1] != height * width:
        raise ValueError(
            f"layer {Block(*extra_options['block'])}: {height}x{width} = {height * width} tokens"
            f" expected, {q.shape[1]} came. Another node rearranges the tokens (HyperTile, Token"
            " Merging): remove it, or leave this layer out"
        )
    return height, width


def wrap_attention(
    model_options: dict[str, Any], kind: str, blocks: Iterable[Block], make: PatchFactory
) -> dict[str, Any]:
    """New model options in which `make(block, previous)` stands in the slots of `blocks`. kind:
    'attn1' or 'attn2'.

    `previous` is the patch that was there, or the plain attention. Because this happens when
    sampling starts, patches that other nodes set after ours are taken along too.
    """
    transformer_options = model_options.get("transformer_options", {})
    replace = dict(transformer_options.get("patches_replace", {}))
    slots = dict(replace.get(kind, {}))
    for block in blocks:
        # A slot with a third index belongs to one transformer block and wins over the slot of the
        # whole UNet block.
        for slot in {tuple(block), *(slot for slot in slots if tuple(slot[:2]) == tuple(block))}:
            slots[slot] = make(block, slots.get(slot, plain_attention))
    replace[kind] = slots
    return {
        **model_options,
        "transformer_options": {**transformer_options, "patches_replace": replace},
    }


def attend_chunks(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_options: dict[str, Any],
    chunks: Sequence[tuple[Any, slice]],
    previous: AttentionPatch,
) -> None:
    """Lets `previous` fill some chunks of a batch's output, with options that speak of these chunks
    only."""
    if not chunks:
        return
    ids = list(extra_options["uuids"])
    size = q.shape[0] // len(ids)
    kept = [rows.start // size for _, rows in chunks]
    options = {
        **extra_options,
        "uuids": [ids[i] for i in kept],
        "cond_or_uncond": [extra_options["cond_or_uncond"][i] for i in kept],
    }
    q, k, v = (torch.cat([x[rows] for _, rows in chunks]) for x in (q, k, v))
    for part, (_, rows) in zip(previous(q, k, v, options).chunk(len(chunks)), chunks, strict=True):
        out[rows] = part
