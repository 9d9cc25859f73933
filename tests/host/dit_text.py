"""The text encoders of transformers: the host's own classes and tokenizers, with small random
networks."""

from __future__ import annotations

import base64
import json
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from magicportrait.tests.host.dits import WIDTH

ENCODERS = (
    *("flux", "flux2", "klein", "qwen", "zimage", "lumina2", "chroma", "sd3", "krea2", "anima"),
)
"""Klein is a Flux.2 with another text encoder. HiDream's is beside them, since the host's files of
Llama's tokenizer may be missing."""
_CLIP_L = {
    "num_hidden_layers": 3,
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "intermediate_size": WIDTH,
    "hidden_act": "quick_gelu",
}
_T5 = {
    "d_ff": WIDTH,
    "d_kv": 32,
    "d_model": WIDTH,
    "num_heads": 3,
    "num_layers": 2,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "t5",
    "vocab_size": 32128,
}


def _llama(hidden: int, layers: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        **more,
    }


class _NoPictures(nn.Module):
    """In place of an encoder of pictures, which takes gigabytes at its own size."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()


class _WithoutPadding:
    """SD3 pads what CLIP gives to the width of T5 at its own size."""

    def encode_token_weights(self, tokens: Any) -> Any:
        with mock.patch("torch.nn.functional.pad", lambda x, *_: x):
            return super().encode_token_weights(tokens)  # type: ignore[misc]


@cache
def random_clip_of(encoder: str) -> Any:
    """CLIP of a family. Skips the test on hosts that are older than it."""
    target, options, data = _parts(encoder)
    import comfy.sd
    import comfy.supported_models_base

    with ExitStack() as stack:
        for place, value in _REPLACED.get(encoder, {}).items():
            stack.enter_context(mock.patch(f"comfy.text_encoders.{place}", value))
        tokenizer, model = _classes(encoder, target)
        clip = comfy.sd.CLIP(
            comfy.supported_models_base.ClipTarget(tokenizer, model),
            model_options={"dtype": torch.float32, **options},
            tokenizer_data=data,
        )
    generator = torch.Generator().manual_seed(0)
    for name, weight in clip.cond_stage_model.named_parameters():
        is_norm = weight.ndim == 1 and "norm" in name and name.endswith("weight")
        noise = torch.randn(weight.shape, generator=generator)
        is_table = weight.ndim < 2 or "embed" in name or "shared" in name
        size = 1.0 if is_table else weight.shape[-1] ** -0.5
        weight.data = noise * 0.1 + 1.0 if is_norm else noise * size
    return clip


def _llama_tokenizer(tokenizer_data: Any, **options: Any) -> Any:
    """Qwen's tokenizer in the place of Llama's, which is as long and padded in the same way: hosts
    may come without the files of Llama's."""
    from comfy.text_encoders.qwen_image import Qwen25_7BVLITokenizer

    tokenizer = Qwen25_7BVLITokenizer(tokenizer_data=tokenizer_data)
    tokenizer.min_length = options["min_length"]
    return tokenizer


_REPLACED: dict[str, dict[str, Any]] = {
    "qwen": {"qwen_vl.Qwen2VLVisionTransformer": _NoPictures},
    # It reads twelve layers of 36.
    "krea2": {"qwen3vl.Qwen3VLVisionModel": _NoPictures, "krea2.KREA2_TAP_LAYERS": [1, 2]},
    "hidream": {"hunyuan_video.LLAMA3Tokenizer": _llama_tokenizer},
}
"""What of the host's modules is another while an encoder is built."""


def _parts(encoder: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The host's module, sizes, and data of the tokenizer."""
    import importlib

    name = {"klein": "flux", "flux2": "flux", "qwen": "qwen_image", "zimage": "z_image"}
    name["sd3"] = "sd3_clip"
    module_name = f"comfy.text_encoders.{name.get(encoder, encoder)}"
    if encoder == "chroma":
        module_name = "comfy.text_encoders.pixart_t5"
    try:
        target = importlib.import_module(module_name)
    except ModuleNotFoundError:
        pytest.skip(f"this host has no {module_name}")
    options: dict[str, Any] = {
        "flux": {"clip_l_model_config": _CLIP_L, "t5xxl_model_config": _T5},
        "chroma": {"t5xxl_model_config": _T5},
        "sd3": {
            "clip_l_model_config": {**_CLIP_L, "hidden_size": WIDTH // 2},
            "clip_g_model_config": {**_CLIP_L, "hidden_size": WIDTH // 2, "hidden_act": "gelu"},
            "t5xxl_model_config": _T5,
        },
        "klein": {"qwen3_4b_model_config": _llama(WIDTH // 3, 28)},
        "flux2": {"mistral3_24b_model_config": _llama(WIDTH // 3, 31)},
        "qwen": {"qwen25_7b_model_config": _llama(WIDTH, 2)},
        "zimage": {"qwen3_4b_model_config": _llama(WIDTH, 3)},
        "lumina2": {"gemma2_2b_model_config": _llama(WIDTH, 3, vocab_size=33000)},
        "krea2": {"qwen3vl_4b_model_config": _llama(WIDTH // 2, 3)},
        "anima": {"qwen3_06b_model_config": _llama(WIDTH, 2)},
        "hidream": {
            "clip_l_model_config": {**_CLIP_L, "hidden_size": WIDTH // 2},
            "clip_g_model_config": {**_CLIP_L, "hidden_size": WIDTH // 2, "hidden_act": "gelu"},
            "t5xxl_model_config": _T5,
            "llama_model_config": _llama(WIDTH, 3),
            "vocab_size": 152000,
        },
    }[encoder]
    data: dict[str, Any] = {}
    if encoder == "lumina2":
        # Gemma's own comes with its weights.
        path = Path(target.__file__).parent / "t5_pile_tokenizer" / "tokenizer.model"
        data["spiece_model"] = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    if encoder == "flux2":
        if not hasattr(target, "Flux2Tokenizer"):
            pytest.skip("this host has no Flux.2")
        data["tekken_model"] = _tekken(Path(target.__file__).parent / "qwen25_tokenizer")
    if encoder == "klein" and not hasattr(target, "KleinTokenizer"):
        pytest.skip("this host has no Flux.2 Klein")
    return target, options, data


def _classes(encoder: str, target: Any) -> tuple[Any, Any]:
    tokenizer, model = {
        "flux": ("FluxTokenizer", "flux_clip"),
        "chroma": ("PixArtTokenizer", "pixart_te"),
        "sd3": ("SD3Tokenizer", "sd3_clip"),
        "klein": ("KleinTokenizer", "klein_te"),
        "flux2": ("Flux2Tokenizer", "flux2_te"),
        "qwen": ("QwenImageTokenizer", "te"),
        "zimage": ("ZImageTokenizer", "te"),
        "lumina2": ("LuminaTokenizer", "te"),
        "krea2": ("Krea2Tokenizer", "te"),
        "anima": ("AnimaTokenizer", "te"),
        "hidream": ("HiDreamTokenizer", "hidream_clip"),
    }[encoder]
    network = getattr(target, model)()
    if encoder == "sd3":
        network = type("SmallSD3ClipModel", (_WithoutPadding, network), {})
    return getattr(target, tokenizer), network


def _tekken(folder: Path) -> Tensor:
    """A small file in the form of Mistral's tokenizer, which comes with its weights: the first
    words of Qwen's."""
    letters = _letters()
    words = json.loads((folder / "vocab.json").read_text("utf-8"))
    vocabulary = [bytes([i]) for i in range(256)]
    for word in sorted(words, key=words.__getitem__)[:20000]:
        spelt = bytes(letters[c] for c in word)
        if len(spelt) > 1:
            vocabulary.append(spelt)
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    special += [f"<{i}>" for i in range(len(special), 20)]
    file = {
        "config": {
            "default_num_special_tokens": len(special),
            "default_vocab_size": len(special) + len(vocabulary),
            "pattern": _PATTERN,
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(word).decode()}
            for rank, word in enumerate(vocabulary)
        ],
        "special_tokens": [{"rank": rank, "token_str": word} for rank, word in enumerate(special)],
    }
    text = json.dumps(file).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}"
    r"]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _letters() -> dict[str, int]:
    """How byte-level vocabularies spell bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
