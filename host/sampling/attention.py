"""Multi-head attention with a bias on the keys, on kernels that respect it."""

from __future__ import annotations

import contextlib

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int) -> Tensor:
    """softmax(q k / sqrt(c) + bias) v. q: B N C; k, v: B M C; bias: M -> B N C."""
    # The bias is a view over heads and queries: it costs no memory.
    return attention_with_bias(q, k, v, bias[None, None, None, :], heads)


def attention_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int) -> Tensor:
    """The same with any bias that fits B heads N M."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    # Sage and Flash attention ignore or refuse a bias, and cuDNN, which the host prefers, finds no
    # plan for some that are broadcast.
    kernels = (
        sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
        if q.is_cuda
        else contextlib.nullcontext()
    )
    with kernels:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return out.transpose(1, 2).flatten(2)
