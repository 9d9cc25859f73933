"""The transformer toy in the form in which it is trained: the host's Flux class, 6.2 M parameters.

256 tokens of 2x2 latent cells for a 256 px picture, after 40 tokens of text; flow matching. The
host runs the same networks through its own classes (`transformer_checkpoint.py`): state dicts have
the host's key names.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import TextEncoder

TEXT_TOKENS = 40
"""Captions have up to 40 tokens with start and end; more would only cost time."""
TRANSFORMER_CONFIG: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 4,
    "out_channels": 4,
    "vec_in_dim": 96,
    "context_in_dim": 96,
    "hidden_size": 192,
    "mlp_ratio": 4.0,
    "num_heads": 6,
    "depth": 2,
    "depth_single_blocks": 6,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [],
}
SUPERVISED_BLOCKS = (1, 3, 5, 7)
"""The blocks whose attention is told where things are, the double ones counted first: the second
double one, and every other single one."""


class _CloningLayerNorm(nn.LayerNorm):
    """The host's blocks add to their input in place, which autograd must not see twice."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.clone())


class _Operations:
    """torch's own layers under the names by which the host's Flux asks for them."""

    Linear, LayerNorm, RMSNorm = nn.Linear, _CloningLayerNorm, nn.RMSNorm


def host_config() -> dict[str, Any]:
    """TRANSFORMER_CONFIG as far as this host's Flux knows it: 0.3.64 has no choice of the text's
    axes, and does what the empty list asks for."""
    from comfy.ldm.flux.model import FluxParams

    fields = {field.name for field in dataclasses.fields(FluxParams)}
    return {
        name: value
        for name, value in TRANSFORMER_CONFIG.items()
        if name == "image_model" or name in fields
    }


def in_host_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's weights as this host calls them: the norms of queries and keys have a
    'scale' in 0.3.64 and a 'weight' today."""
    from comfy.ldm.flux import layers

    own = "weight" if getattr(layers, "RMSNorm", None) is None else "scale"
    return {
        f"{name.rpartition('.')[0]}.{own}"
        if "query_norm." in name or "key_norm." in name
        else name: tensor
        for name, tensor in state.items()
    }


def build_transformer() -> nn.Module:
    """The host's Flux class on trainable layers, initialised for training: every block is the
    identity at first, and the output zero."""
    from comfy.ldm.flux.model import Flux

    transformer: nn.Module = Flux(**host_config(), operations=_Operations)
    for name, parameter in transformer.named_parameters():
        if "query_norm." in name or "key_norm." in name:
            nn.init.ones_(parameter)
    for name, module in transformer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name.endswith((".lin", "final_layer.linear", "final_layer.adaLN_modulation.1")):
            nn.init.zeros_(module.weight)
        else:
            nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return transformer


def text_attention(q: Tensor, k: Tensor) -> Tensor:
    """Where each token of the text is looked at: the joint softmax of the picture's rows,
    renormalised over the text's columns, which is the softmax over those columns alone. q, k: B h
    T+N D -> head mean B N T."""
    rows, columns = q[:, :, TEXT_TOKENS:], k[:, :, :TEXT_TOKENS]
    logits = rows @ columns.transpose(-1, -2) * q.shape[-1] ** -0.5
    shares: Tensor = logits.float().softmax(-1)
    return shares.mean(1)


def attention_recorder(maps: list[Tensor]) -> Callable[..., Tensor]:
    """An attention override for a training forward, which appends `text_attention` of the
    supervised blocks to `maps`. Blocks are counted: not every host names them."""
    blocks = itertools.count()

    def override(
        host_attention: object, q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        if next(blocks) in SUPERVISED_BLOCKS:
            maps.append(text_attention(q, k))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    return override


class ToyTransformer(nn.Module):
    """Transformer and text encoder. `token_ids`: the text encoder's vocabulary."""

    def __init__(self, token_ids: list[int]) -> None:
        super().__init__()
        self.transformer = build_transformer()
        self.text_encoder = TextEncoder(token_ids)

    def context(self, rows: Tensor, end_row: int) -> tuple[Tensor, Tensor]:
        """Rows B T of the short vocabulary -> context B T C, and B C at the first end token."""
        context = self.text_encoder(rows)
        first_end = (rows == end_row).int().argmax(1)
        return context, context[torch.arange(len(rows), device=rows.device), first_end]

    def forward(
        self, x: Tensor, sigma: Tensor, rows: Tensor, end_row: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Predicted velocity (noise - picture), B 4 H W, and `text_attention` of every supervised
        block. sigma: B, 0 (picture) to 1 (noise)."""
        maps: list[Tensor] = []
        context, pooled = self.context(rows, end_row)
        velocity: Tensor = self.transformer(
            x,
            sigma,
            context,
            y=pooled,
            transformer_options={"optimized_attention_override": attention_recorder(maps)},
        )
        return velocity, maps
