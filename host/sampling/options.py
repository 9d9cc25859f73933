"""What the host hands to every attention layer beside q, k and v."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from torch import Tensor

ModelOptions = dict[str, Any]
"""The host's `model_options`: what patches and nodes have set for a sampling run or a model
call."""


class AttentionOptions(TypedDict, total=False):
    """The host's `extra_options` of a UNet's attention, as far as we read them.

    block: kind and index as the host calls them ('output', 6); block_index: which transformer block
    of it; n_heads, attn_precision: of the layer; activations_shape: B C h w before the tokens were
    made; original_shape: of the latent that the call runs on; uuids: the id of each chunk's cond;
    cond_or_uncond: 0 or 1 for each chunk; sigmas: of the call, one a row.
    """

    block: tuple[str, int]
    block_index: int
    n_heads: int
    attn_precision: Any
    activations_shape: list[int]
    original_shape: list[int]
    uuids: list[Any]
    cond_or_uncond: list[int]
    sigmas: Tensor


AttentionPatch = Callable[[Tensor, Tensor, Tensor, AttentionOptions], Tensor]
"""What may stand in an attention layer's place: (q, k, v, options) -> result, all B N C."""
