"""SAM: the exact shape of a thing, from a box or points."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...magic.boxes import Box, Point
from ..models import folders as model_folders
from ..models.borrowed_network import BorrowedNetwork
from ..models.folders import SAMS
from ..pictures.conversion import as_pixels

_DECODER_HEADS = 8
_MEMORY = 5 * 1024**3
"""Bytes that vit_h works in: the attention of a few layers sees all 64x64 tokens at once."""


class Segmenter:
    """SAM (Kirillov et al., 2023) through the segment-anything package. Its size is read from the
    checkpoint."""

    def __init__(self, name: str):
        """ValueError names the file, or the package, that is missing, or says that the file is no
        SAM checkpoint."""
        path = model_folders.path_of(SAMS, name)
        try:
            from segment_anything import SamPredictor
        except ImportError as error:
            raise ValueError(
                f"'{name}' needs the package segment-anything: pip install segment-anything, as in"
                " the pack's requirements.txt, and restart ComfyUI"
            ) from error
        state = model_folders.read_tensors(path)
        if "image_encoder.pos_embed" not in state:
            raise ValueError(
                f"'{name}' is not a SAM checkpoint (vit_b, vit_l or vit_h):"
                f" {model_folders.missing_message(SAMS)}"
            )
        with model_folders.reading(path, "a SAM checkpoint (vit_b, vit_l or vit_h)"):
            sam = build_sam(state)
            sam.load_state_dict(state)
        self._model = BorrowedNetwork(sam, _MEMORY)
        self._predictor: Any = SamPredictor(self._model.on_device())

    def look_at(self, image: Tensor) -> None:
        """image: H W 3 in 0..1. The slow part: masks of it are quick afterwards."""
        self._size = tuple(image.shape[:2])
        self._predictor.model = self._model.on_device()
        self._predictor.set_image(as_pixels(image))

    def mask_of_box(self, box: Box) -> Tensor:
        """H W, 0 or 1."""
        masks, _, _ = self._predictor.predict(box=np.array(box.corners), multimask_output=False)
        return torch.from_numpy(masks[0]).float()

    def mask_of_points(
        self, inside: Sequence[Point], outside: Sequence[Point], box: Box | None = None
    ) -> Tensor:
        """The best of SAM's three readings of the points: H W, 0 or 1. Points outside the picture
        are a ValueError."""
        height, width = self._size
        for x, y in (*inside, *outside):
            if not (0 <= x < width and 0 <= y < height):
                raise ValueError(
                    f"point {x:g},{y:g} is outside the picture, which is {width}x{height}"
                )
        points = np.array([*inside, *outside], np.float32)
        labels = np.array([1] * len(inside) + [0] * len(outside))
        corners = None if box is None else np.array(box.corners)
        masks, scores, _ = self._predictor.predict(
            points, labels, box=corners, multimask_output=True
        )
        return torch.from_numpy(masks[int(scores.argmax())]).float()


def build_sam(state: dict[str, Tensor]) -> Any:
    """A SAM of the size that a state dict has, as segment-anything's own builders make it."""
    from functools import partial

    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    _, grid, _, width = state["image_encoder.pos_embed"].shape
    patch = state["image_encoder.patch_embed.proj.weight"].shape[-1]
    blocks = [
        state[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape
        for i in range(_count(state, r"image_encoder\.blocks\.(\d+)\."))
    ]
    channels = state["image_encoder.neck.0.weight"].shape[0]
    # Relative positions are stored for 2 side - 1 offsets: the whole grid's, or a window's.
    windows = [(offsets + 1) // 2 for offsets, _ in blocks]
    side = grid * patch
    decoder = "mask_decoder."
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=side,
            patch_size=patch,
            embed_dim=width,
            depth=len(blocks),
            num_heads=width // blocks[0][1],
            mlp_ratio=state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / width,
            out_chans=channels,
            qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=min(windows),
            global_attn_indexes=tuple(i for i, window in enumerate(windows) if window == grid),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(grid, grid),
            input_image_size=(side, side),
            mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=state[f"{decoder}mask_tokens.weight"].shape[0] - 1,
            transformer=TwoWayTransformer(
                depth=_count(state, r"mask_decoder\.transformer\.layers\.(\d+)\."),
                embedding_dim=channels,
                mlp_dim=state[f"{decoder}transformer.layers.0.mlp.lin1.weight"].shape[0],
                num_heads=_DECODER_HEADS,
            ),
            transformer_dim=channels,
            iou_head_depth=_count(state, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
            iou_head_hidden_dim=state[f"{decoder}iou_prediction_head.layers.0.weight"].shape[0],
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    ).eval()


def _count(state: dict[str, Tensor], pattern: str) -> int:
    return 1 + max(int(match[1]) for match in map(re.compile(pattern).match, state) if match)
