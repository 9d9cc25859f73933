"""Small random networks in the files and folders of the real ones: loaders cannot tell the
difference."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "hat", "scarf", "a", "man", "wearing"]
_MEAN, _STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def write_sam(path: Path, seed: int = 0) -> None:
    """A SAM of 64 pixels, with the key names of the published vit_b, vit_l and vit_h
    checkpoints."""
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    torch.manual_seed(seed)
    channels, grid = 16, 4
    sam = Sam(
        ImageEncoderViT(
            img_size=64,
            patch_size=16,
            embed_dim=24,
            depth=2,
            num_heads=3,
            mlp_ratio=4,
            out_chans=channels,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=2,
            global_attn_indexes=(1,),
        ),
        PromptEncoder(channels, (grid, grid), (64, 64), mask_in_chans=8),
        MaskDecoder(
            transformer_dim=channels,
            transformer=TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=8, mlp_dim=32),
            iou_head_hidden_dim=24,
        ),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor + 0.1 * torch.randn_like(tensor)
        for name, tensor in sam.state_dict().items()
        if "pixel_" not in name
    }
    torch.save(state, path)


def write_grounding_dino(folder: Path, seed: int = 0) -> None:
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    backbone = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=4,
        out_indices=[2, 3, 4],
    )
    text = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=30,
        num_feature_levels=4,
        max_text_len=16,
    )
    GroundingDinoForObjectDetection(config).eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    size = {"shortest_edge": 64, "longest_edge": 96}
    GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), tokenizer).save_pretrained(
        folder
    )


def write_clip(folder: Path, seed: int = 0) -> None:
    import comfy.sd1_clip
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizerFast,
    )

    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    layers = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 24,
    }
    config = CLIPConfig(
        text_config={**layers, "vocab_size": 49408, "eos_token_id": 49407},
        vision_config={**layers, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    CLIPModel(config).eval().save_pretrained(folder)
    words = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
    size = {"shortest_edge": 32}
    images = CLIPImageProcessor(
        size=size, crop_size={"height": 32, "width": 32}, image_mean=_MEAN, image_std=_STD
    )
    CLIPProcessor(images, CLIPTokenizerFast.from_pretrained(words)).save_pretrained(folder)


def write_dino(folder: Path, seed: int = 0) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=28,
        patch_size=14,
    )
    Dinov2Model(config).eval().save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)


def write_aesthetic(path: Path, features: int = 24, seed: int = 0) -> None:
    """The form of LAION's improved aesthetic predictor: linear layers with nothing but dropout
    between them."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    state, width = {}, features
    for index, out in ((0, 16), (2, 8), (4, 6), (6, 4), (7, 1)):
        layer = torch.nn.Linear(width, out)
        state |= {
            f"layers.{index}.weight": layer.weight.data,
            f"layers.{index}.bias": layer.bias.data,
        }
        width = out
    save_file(state, path)


def write_alexnet(path: Path, seed: int = 0) -> None:
    import torchvision

    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = torchvision.models.alexnet(weights=None).features.state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in state.items()}, path)


FACE_CELL = 16
"""A face of `write_mediapipe` fills a cell of this size, in 128ths of the picture's side."""


def write_mediapipe(path: Path) -> None:
    """ComfyUI's own file of MediaPipe's networks, which here take every bright cell of a dark
    square picture for a face. The detector's box is 40/128 of the side wide, the landmarks fill the
    half of the enlarged box that the mesh is given: 30/128, around the cell's middle.
    """
    from comfy_extras.mediapipe.face_landmarker import FaceLandmarker
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for variant in ("full", "short"):
        model = FaceLandmarker(detector_variant=variant)
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        with torch.no_grad():
            if variant == "full":
                model.detector.cls_dw.bias.fill_(-100)
            else:
                # Zero blocks pass the first channel on, and their pooling keeps what is brightest
                # in each cell.
                model.detector.stem.weight[0].fill_(1 / 75)
                model.detector.cls_16.bias.fill_(-100)
                model.detector.cls_8.bias.copy_(torch.tensor([-190.0, *[-100.0] * 5]))
                model.detector.cls_8.weight[0, 0] = 200
                # Middle, size, then the eyes: of the first of six boxes a cell.
                model.detector.reg_8.bias[:8] = torch.tensor(
                    [0.0, 0.0, 40.0, 40.0, -10.0, 0.0, 10.0, 0.0]
                )
            landmarks = 48 + 96 * torch.rand(478, 3)
            landmarks[:2, :2] = torch.tensor([[48.0, 48.0], [144.0, 144.0]])
            model.mesh.head_landmarks.bias.copy_(landmarks.flatten())
        parts = {
            name.replace("detector.", f"detector_{variant}."): tensor
            for name, tensor in model.state_dict().items()
        }
        state |= parts
    state |= {
        "canonical_vertices": torch.randn(468, 3),
        "procrustes_indices": torch.arange(33),
        "procrustes_weights": torch.ones(33),
    }
    rings = (
        "face_oval",
        "left_eye",
        "right_eye",
        "left_eyebrow",
        "right_eyebrow",
        "lips",
        "irises",
        "nose",
        "tesselation",
    )
    state |= {f"topology.{ring}": torch.tensor([[0, 1]], dtype=torch.int32) for ring in rings}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
