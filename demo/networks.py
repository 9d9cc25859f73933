"""The diffusion model of the toy checkpoint: the shapes, and the networks in the form in which they
are trained.

The host runs the same networks through its own classes (`checkpoint.py`): state dicts have the
host's key names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNET_CONFIG: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2, 2],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [1, 1, 1],
    "transformer_depth_output": [1] * 6,
    "transformer_depth_middle": 1,
    "num_head_channels": 32,
    "context_dim": 96,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}
ATTENTION_BLOCKS = [
    ("input", 1),
    ("input", 3),
    ("input", 5),
    ("middle", 0),
    *(("output", i) for i in range(6)),
]
TEXT_CONFIG: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 96,
    "num_attention_heads": 3,
    "intermediate_size": 384,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
VOCABULARY_SIZE = 49408


class TextLayer(nn.Module):
    """A layer of CLIP's text transformer: B T C -> B T C, each token looks at itself and earlier
    ones."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = nn.ModuleDict(
            {name: nn.Linear(width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        normed = self.layer_norm1(x)
        q, k, v = (
            self.self_attn[name](normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        attended = (
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )
        x = x + self.self_attn["out_proj"](attended)
        hidden = self.mlp["fc1"](self.layer_norm2(x))
        x = x + self.mlp["fc2"](hidden * torch.sigmoid(1.702 * hidden))
        return x


class TextEncoder(nn.Module):
    """CLIP's text transformer on a short vocabulary. Row 0 of the embedding stands for every word
    that is not in `token_ids`."""

    def __init__(self, token_ids: list[int]) -> None:
        super().__init__()
        width, config = TEXT_CONFIG["hidden_size"], TEXT_CONFIG
        self.register_buffer("token_ids", torch.tensor(token_ids))
        self.token_embedding = nn.Embedding(len(token_ids) + 1, width)
        self.position_embedding = nn.Parameter(
            torch.empty(config["max_position_embeddings"], width)
        )
        self.layers = nn.ModuleList(
            TextLayer(width, config["num_attention_heads"], config["intermediate_size"])
            for _ in range(config["num_hidden_layers"])
        )
        self.final_layer_norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.2)
        nn.init.normal_(self.position_embedding, std=0.05)

    def forward(self, rows: Tensor) -> Tensor:
        """B T, rows of the short vocabulary (T up to 77) -> B T C."""
        x: Tensor = self.token_embedding(rows) + self.position_embedding[: rows.shape[1]]
        for layer in self.layers:
            x = layer(x)
        x = self.final_layer_norm(x)
        return x

    def load_words(self, state: dict[str, Tensor]) -> None:
        """Takes the weights of a file ('text' of `checkpoint.read_parts`) whose vocabulary may be
        another: words that the file does not know keep the rows that they were built with."""
        vocabulary = self.get_buffer("token_ids")
        rows = state["token_embedding.weight"].float()
        row_of = {int(token): row for row, token in enumerate(state["token_ids"], start=1)}
        table = self.token_embedding.weight.detach().clone()
        table[0] = rows[0]
        for row, token in enumerate(vocabulary.tolist(), start=1):
            if token in row_of:
                table[row] = rows[row_of[token]]
        floats = {name: value.float() for name, value in state.items() if name != "token_ids"}
        self.load_state_dict({**floats, "token_embedding.weight": table, "token_ids": vocabulary})


class _Operations:
    """torch's own layers under the names by which the host's UNet asks for them; outputs that start
    at zero keep blocks quiet at first."""

    Linear, Conv2d, GroupNorm, LayerNorm = nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm

    @staticmethod
    def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
        return nn.Conv2d(*args, **kwargs)


def build_unet() -> nn.Module:
    """The host's UNet class on trainable layers, initialised for training."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**UNET_CONFIG, operations=_Operations)
    for name, module in unet.named_modules():
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


AttentionPatch = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]


def attention_recorder(
    cross_maps: list[Tensor],
) -> dict[str, dict[tuple[str, int], AttentionPatch]]:
    """`patches_replace` for a training forward: SDPA in self-attention, explicit softmax in
    cross-attention.

    The head mean of the latter is appended to `cross_maps`.
    """

    def split(x: Tensor, heads: int) -> Tensor:
        split_up: Tensor = x.unflatten(-1, (heads, -1))
        return split_up.transpose(1, 2)

    def self_attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        heads = extra_options["n_heads"]
        return (
            F.scaled_dot_product_attention(split(q, heads), split(k, heads), split(v, heads))
            .transpose(1, 2)
            .flatten(2)
        )

    def cross_attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        heads = extra_options["n_heads"]
        q, k, v = split(q, heads), split(k, heads), split(v, heads)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = logits.float().softmax(-1)  # B h N 77
        cross_maps.append(weights.mean(1))
        attended: Tensor = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return attended

    patches: dict[str, dict[tuple[str, int], AttentionPatch]] = {"attn1": {}, "attn2": {}}
    for block in ATTENTION_BLOCKS:
        patches["attn1"][block], patches["attn2"][block] = self_attention, cross_attention
    return patches
