"""The UNet in a form that can be trained: the host's class on torch's own layers, the model's
patched weights, and LoRA."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...magic import capture_losses
from ...magic.blocks import AttentionBlock, Block
from ..models.patched_weights import patched_weights
from ..sampling.backbone import unet_of
from ..sampling.backbone.unet import CHANNELS, PIXELS, attention_patches, token_grid
from ..sampling.options import AttentionOptions, AttentionPatch
from .lora import ADAPTERS, Adapter, fill, new_adapter
from .map_list import MapList
from .text import Prompt

_PREFIX = "diffusion_model."
_ADAPTED = (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.0.proj")
_LORA_TIMESTEPS = 800
"""The official code trains LoRA on the lower four fifths of the noise levels."""
_MAP_SIDE = 16
"""The paper reads attention maps of 16x16 tokens. Of a model's resolutions the one nearest to that
is taken."""


class _Layers:
    """torch's own layers under the names by which the host's UNet asks for them. Their weights are
    read right after they are made, so none are drawn. Norms are fp32 in any precision."""

    class GroupNorm(nn.GroupNorm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{**options, "dtype": torch.float32})

    class LayerNorm(nn.LayerNorm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{**options, "dtype": torch.float32})

    class Linear(nn.Linear):
        def reset_parameters(self) -> None:
            pass

    class Conv2d(nn.Conv2d):
        def reset_parameters(self) -> None:
            pass

    @classmethod
    def conv_nd(cls, dims: int, *args: Any, **kwargs: Any) -> nn.Module:
        return cls.Conv2d(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class UNetCondition:
    """What a UNet is told.

    context: B 77 C. vector: SDXL's of the pooled text and the picture's size, B C; None for models
    without one. columns: B 2, positions of the learned words in the prompt, the first twice where
    there is one, and the first token where there is none; None where no prompt has one.
    """

    context: Tensor
    vector: Tensor | None
    columns: Tensor | None

    def of_rows(self, rows: Sequence[int]) -> UNetCondition:
        """The same for some samples."""
        vector, columns = (x if x is None else x[rows] for x in (self.vector, self.columns))
        return UNetCondition(self.context[rows], vector, columns)


class TrainableUNet:
    """A `Denoiser`: a copy of a MODEL's UNet. Its times are timesteps of 1000.

    alpha_bars: the model's noise schedule, by timestep. v_prediction: what its output means, v or
    eps. All else: as there.
    """

    latent_channels = CHANNELS
    pixels_per_latent = PIXELS
    preview_cfg = 5.0

    def __init__(
        self,
        model: Any,
        device: torch.device,
        dtype: torch.dtype,
        gradient_checkpointing: bool,
        is_filled: bool = True,
    ):
        """is_filled: whether the weights are read; without, all has its shape only."""
        self._host = model.model
        backbone = unet_of(model)
        self.native_side = backbone.native_side
        self._blocks = backbone.layers
        sampling = model.get_model_object("model_sampling")
        self.v_prediction = _check_sampling(model, sampling)
        self.alpha_bars = (1 / (1 + sampling.sigmas.detach().float().clone() ** 2)).to(device)
        self.device, self.dtype = device, dtype
        config = {**self._host.model_config.unet_config, "dtype": dtype}
        config.pop("disable_unet_model_creation", None)
        self.network = type(self._host.diffusion_model)(**config, device=device, operations=_Layers)
        # The copied names are those of this very class, so a key too many or too few means a
        # patched-up host model.
        if is_filled:
            weights = patched_weights(model, _PREFIX)
            fill(self.network, ((name, value.to(dtype)) for name, value in weights))
        self.network.requires_grad_(False).eval()
        self._is_saving = gradient_checkpointing
        if gradient_checkpointing:
            self._checkpoint_blocks()
        self.adapters: dict[str, Adapter] = {}

    def _checkpoint_blocks(self) -> None:
        for module in self.network.modules():
            if type(module).__name__ in ("ResBlock", "SpatialTransformer"):
                module.forward = functools.partial(_with_checkpoint, module.forward)

    def add_lora(self, rank: int, generator: torch.Generator, adapter: str = ADAPTERS[0]) -> None:
        """LoRA, or another kind of adapter, on the projections of both attentions and on the GEGLU
        projection, as in the official code."""
        for name, module in self.network.named_modules():
            if (
                isinstance(module, nn.Linear)
                and ".transformer_blocks." in name
                and name.endswith(_ADAPTED)
            ):
                self.adapters[_PREFIX + name] = new_adapter(adapter, module, rank, generator)

    def blocks(self, watched_size: tuple[int, int] | None = None) -> list[nn.Module]:
        """Residual blocks and transformers, or the blocks in these where nothing is computed
        twice."""
        watched = () if watched_size is None else map_blocks(self._blocks, watched_size)
        stages: dict[str, Any] = {"i": self.network.input_blocks, "o": self.network.output_blocks}
        parts = [
            (Block(letter, index), part)
            for letter, stage in {**stages, "m": [self.network.middle_block]}.items()
            for index, part in enumerate(stage)
        ]
        inner = "SpatialTransformer" if self._is_saving else "BasicTransformerBlock"
        return [
            module
            for block, part in parts
            for module in part.modules()
            if type(module).__name__ == "ResBlock"
            or (type(module).__name__ == inner and block not in watched)
        ]

    def process_in(self, latents: Tensor) -> Tensor:
        """As the host's."""
        out: Tensor = self._host.process_latent_in(latents)
        return out

    def process_out(self, latents: Tensor) -> Tensor:
        """As the host's."""
        out: Tensor = self._host.process_latent_out(latents)
        return out

    def draw_times(
        self, count: int, size: tuple[int, int], of_lora: bool, generator: torch.Generator
    ) -> Tensor:
        """All alike."""
        most = _LORA_TIMESTEPS if of_lora else len(self.alpha_bars)
        return torch.randint(most, (count,), generator=generator).to(self.device)

    def draw_early_times(self, count: int, until: int, generator: torch.Generator) -> Tensor:
        """Of those that LoRA learns from."""
        times = torch.randint(min(until, _LORA_TIMESTEPS), (count,), generator=generator)
        return times.to(self.device)

    def is_early(self, times: Tensor, until: int) -> Tensor:
        """Timesteps are counted."""
        return times < until

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is shown. latents, noise: B C h w; timesteps: B -> B C h w."""
        signal, scale = self._shares(timesteps)
        return signal * latents + scale * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should give for it, B C h w."""
        if not self.v_prediction:
            return noise
        signal, scale = self._shares(timesteps)
        return signal * noise - scale * latents

    def clean(self, noisy: Tensor, output: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latent that an output speaks of, B C h w."""
        return capture_losses.clean_estimate(
            noisy, output, self.alpha_bars[timesteps], self.v_prediction
        )

    def _shares(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """How much of a latent and of noise is in a noisy latent, B 1 1 1 each."""
        alpha_bar = self.alpha_bars[timesteps].reshape(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def condition(
        self,
        encoded: tuple[Tensor, Tensor | None],
        prompts: Sequence[Prompt],
        size: tuple[int, int],
    ) -> UNetCondition:
        """encoded: context and pooled text."""
        context, pooled = encoded
        rows = [[place for place in prompt.positions if place >= 0] for prompt in prompts]
        columns = None
        if any(rows):
            # Of a prompt without a word any column does: it counts nothing.
            columns = torch.tensor([(row * 2 or [0, 0])[:2] for row in rows], device=self.device)
        return UNetCondition(context, self._size_vector(pooled, size), columns)

    def _size_vector(self, pooled: Tensor | None, size: tuple[int, int]) -> Tensor | None:
        if self.network.num_classes is None or pooled is None:
            return None
        height, width = (count * self.pixels_per_latent for count in size)
        vector: Tensor = self._host.encode_adm(
            device=self.device, pooled_output=pooled, width=width, height=height
        )
        return vector.to(self.device)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, condition: UNetCondition, watched: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Maps are those of all layers of the resolution nearest to 16x16 (encoder and decoder, as
        in the official code)."""
        columns = condition.columns if watched else None
        maps = MapList()
        image: dict[Block, AttentionPatch] = {}
        text: dict[Block, AttentionPatch] = {}
        size = noisy.shape[-2], noisy.shape[-1]
        map_layers = () if columns is None else map_blocks(self._blocks, size)
        for layer in self._blocks:
            image[layer.block] = text[layer.block] = _attention
            if columns is not None and layer.block in map_layers:
                text[layer.block] = functools.partial(
                    _watched_attention, columns=columns, maps=maps
                )
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.network(
                noisy.to(self.dtype),
                timesteps,
                context=condition.context.to(self.dtype),
                y=condition.vector,
                transformer_options=attention_patches(image, text),
            )
        return output.float(), maps.read()

    def schedule(self, steps: int) -> list[float]:
        """Evenly from the last timestep to the first."""
        return torch.linspace(len(self.alpha_bars) - 1, 0, steps).round().long().tolist()

    def renoised(self, noisy: Tensor, clean: Tensor, now: float, after: float | None) -> Tensor:
        """DDIM."""
        alpha_bar = self.alpha_bars[int(now)]
        noise = (noisy - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
        following = torch.ones((), device=self.device)
        if after is not None:
            following = self.alpha_bars[int(after)]
        result: Tensor = following.sqrt() * clean + (1 - following).sqrt() * noise
        return result


def map_blocks(blocks: Sequence[AttentionBlock], size: tuple[int, int]) -> tuple[Block, ...]:
    """The encoder and decoder blocks whose token grid, for a latent of `size`, is nearest to
    16x16."""
    outer = [block for block in blocks if block.block.kind != "m"]
    side = math.sqrt(size[0] * size[1])
    nearest = min(
        {block.downscale for block in outer},
        key=lambda downscale: abs(math.log(side / downscale / _MAP_SIDE)),
    )
    return tuple(block.block for block in outer if block.downscale == nearest)


def _with_checkpoint(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    # The host writes the current block into its options as it goes: a recomputation needs them as
    # they are now.
    args = tuple(dict(value) if isinstance(value, dict) else value for value in args)
    kwargs = {
        name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()
    }
    output: Tensor = checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return output


def _heads(x: Tensor, count: int) -> Tensor:  # B N C -> B heads N c
    return x.reshape(*x.shape[:-1], count, -1).transpose(1, 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, extra: AttentionOptions) -> Tensor:
    count = extra["n_heads"]
    q, k, v = _heads(q, count), _heads(k, count), _heads(v, count)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _watched_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra: AttentionOptions,
    columns: Tensor,
    maps: MapList,
) -> Tensor:
    """Cross-attention with an explicit softmax, of which `columns` (B K) go into `maps`."""
    grid, count = token_grid(q, extra), extra["n_heads"]
    q, k, v = _heads(q, count), _heads(k, count), _heads(v, count)
    # As the host does where half precision overflows, which it does in SD2.1.
    with torch.autocast(q.device.type, enabled=False):
        probabilities = (q.float() * q.shape[-1] ** -0.5 @ k.float().transpose(-1, -2)).softmax(
            -1
        )  # B heads N 77
    index = columns[:, None, None].expand(-1, count, probabilities.shape[2], -1)
    columns_of_heads = probabilities.gather(-1, index).transpose(2, 3)  # B heads K N
    maps.add(columns_of_heads.reshape(*columns_of_heads.shape[:-1], *grid))
    out: Tensor = probabilities.to(v.dtype) @ v
    return out.transpose(1, 2).flatten(2)


def _check_sampling(model: Any, sampling: Any) -> bool:
    """Whether the model predicts v. ValueError for models that training does not know."""
    import comfy.model_sampling as rules

    # Not the model's own type: ModelSamplingDiscrete gives it another rule.
    rule = type(sampling).calculate_denoised
    predicts_v = {rules.EPS.calculate_denoised: False, rules.V_PREDICTION.calculate_denoised: True}
    if rule not in predicts_v or len(getattr(sampling, "sigmas", ())) != 1000:
        name = rule.__qualname__.split(".")[0]
        raise ValueError(
            "MagiCapture trains models that predict eps or v over 1000 timesteps (SD1.5, SD2.1,"
            f" SDXL), got {name}"
        )
    channels = model.model.model_config.unet_config["in_channels"]
    if channels != TrainableUNet.latent_channels:
        raise ValueError(
            "MagiCapture trains text-to-image models with"
            f" {TrainableUNet.latent_channels} latent channels, this one takes {channels}"
            " (inpainting, edit)"
        )
    return predicts_v[rule]
