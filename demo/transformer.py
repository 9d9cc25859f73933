"""The transformer toy in the form in which it is trained: the host's Flux class, 6.2 M parameters.

256 tokens of 2x2 latent cells for a 256 px picture, after 40 tokens of text; flow matching. The
host runs the same networks through its own classes (`transformer_checkpoint.py`): state dicts have
the host's key names.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
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

REFERENCE_METHOD = "index"
"""How the edit variant is given references, in the host's words: the first at 1 of axis 0, the
second at 2. (At time zero, which the shipped weights would know better, the host's Flux cannot have
them in a batch beside a pooled text.)"""
REFERENCE_SIDE = 128
"""Of reference pictures, in pixels: 64 tokens each."""


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


def attention_to(q: Tensor, k: Tensor, picture: int, columns: slice) -> Tensor:
    """Where the picture's rows look among some columns: their joint softmax, renormalised over
    these, which is the softmax over these alone. q, k: B h T+N+R D (text, picture of `picture`
    tokens, references) -> head mean B N K."""
    rows, seen = q[:, :, TEXT_TOKENS : TEXT_TOKENS + picture], k[:, :, columns]
    logits = rows @ seen.transpose(-1, -2) * q.shape[-1] ** -0.5
    shares: Tensor = logits.float().softmax(-1)
    return shares.mean(1)


def attention_recorder(
    maps: list[Tensor], picture: int, reference_maps: list[Tensor] | None = None
) -> Callable[..., Tensor]:
    """An attention override for a training forward, which appends `attention_to` the text of the
    supervised blocks to `maps`, and that to the references to `reference_maps`. picture: tokens of
    it. Blocks are counted: not every host names them."""
    blocks = itertools.count()

    def override(
        host_attention: object, q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        if next(blocks) in SUPERVISED_BLOCKS:
            maps.append(attention_to(q, k, picture, slice(0, TEXT_TOKENS)))
            if reference_maps is not None:
                references = slice(TEXT_TOKENS + picture, None)
                reference_maps.append(attention_to(q, k, picture, references))
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
        """Predicted velocity (noise - picture), B 4 H W, and `attention_to` the text of every
        supervised block. sigma: B, 0 (picture) to 1 (noise)."""
        maps: list[Tensor] = []
        context, pooled = self.context(rows, end_row)
        velocity: Tensor = self.transformer(
            x,
            sigma,
            context,
            y=pooled,
            transformer_options={
                "optimized_attention_override": attention_recorder(maps, _tokens_of(x))
            },
        )
        return velocity, maps

    def forward_with_references(
        self, x: Tensor, sigma: Tensor, rows: Tensor, end_row: int, references: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The same with references in the sequence, B 4 h w each, and `attention_to` all of their
        tokens. As `REFERENCE_METHOD` of the host's Flux has it."""
        maps: list[Tensor] = []
        reference_maps: list[Tensor] = []
        context, pooled = self.context(rows, end_row)
        override = attention_recorder(maps, _tokens_of(x), reference_maps)
        velocity: Tensor = self.transformer(
            x,
            sigma,
            context,
            y=pooled,
            ref_latents=list(references),
            ref_latents_method=REFERENCE_METHOD,
            transformer_options={"optimized_attention_override": override},
        )
        return velocity, maps, reference_maps


def noised(latents: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Latents B 4 H W at the noise levels sigma, B, 0 (picture) to 1 (noise)."""
    weight = sigma[:, None, None, None]
    return (1 - weight) * latents + weight * noise


def _tokens_of(x: Tensor) -> int:
    """Tokens of a latent B 4 H W."""
    patch: int = TRANSFORMER_CONFIG["patch_size"]
    return math.prod(x.shape[-2:]) // patch**2
