"""Transformers of flow matching in a form that can be trained: the host's class on layers that pass
gradients, the model's patched weights, and LoRA."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...magic.blocks import Block
from ..models.patched_weights import patched_weights
from ..sampling.backbone import LayerView, Watch
from ..sampling.backbone.joint import JointTransformer
from ..sampling.backbone.model_call import recount
from .encoded_text import EncodedPrompt
from .float8 import Float8Linear
from .lora import ADAPTERS, Adapter, fill, new_adapter
from .map_list import MapList

_PREFIX = "diffusion_model."
_ATTENTION = ("attn", "attn1", "attn2", "img_attn", "txt_attn", "attention", "linear1", "linear2")
"""Parts of a block whose linear layers are attention's: `linear1` and `linear2` of Flux's single
blocks hold attention and MLP in one."""
_MLP = ("mlp", "img_mlp", "txt_mlp", "feed_forward", "ff_i", "ff_t")
_LEAST_SIGMA = 1e-3
_FLUX_LINE = (1.15 - 0.5) / (4096 - 256)
"""How the shift of Flux grows with a token of the picture: from .5 at 256 to 1.15 at 4096 (Black
Forest Labs' own sampler)."""
NO_GRADIENT: Mapping[str, str] = {
    "ErnieImage": "ERNIE-Image",
    "Anima": "Anima",
    "CosmosPredict2": "Cosmos Predict 2",
}
"""Classes of models whose layers the host computes with kernels that pass no gradients, and what
people call them."""


def check_gradients(model: Any) -> None:
    """ValueError, with its name, for a MODEL that passes no gradients. To be asked before anything
    is loaded."""
    name = NO_GRADIENT.get(type(model.model).__name__)
    if name is not None:
        raise ValueError(
            f"{name} cannot be trained: ComfyUI computes its layers with kernels that pass no"
            " gradients. Take another model: SD1.5, SDXL, Flux, Z-Image, Qwen-Image, Krea 2, SD3.5"
        )


@dataclass(frozen=True, eq=False)
class FlowCondition:
    """What a transformer is told with some samples.

    prompts: as they are encoded. inputs: for each sample what the host's class is called with
    beside latent and noise level.
    """

    prompts: Sequence[EncodedPrompt]
    inputs: Sequence[Mapping[str, Any]]

    def of_rows(self, rows: Sequence[int]) -> FlowCondition:
        """The same for some samples."""
        return FlowCondition(
            [self.prompts[row] for row in rows], [self.inputs[row] for row in rows]
        )


class TrainableTransformer:
    """A `Denoiser`: a copy of a MODEL's transformer. Its times are noise levels sigma of 0..1: a
    latent is shown as sigma * noise + (1 - sigma) * latent, and the velocity noise - latent is
    predicted, whatever sign the network itself has.
    """

    preview_cfg = 4.0

    def __init__(
        self,
        model: Any,
        device: torch.device,
        dtype: torch.dtype,
        gradient_checkpointing: bool,
        is_filled: bool = True,
        in_float8: bool = False,
    ):
        """is_filled: whether the weights are read; without, all has its shape only. in_float8:
        whether the linear layers of the blocks keep theirs in fp8."""
        backbone = JointTransformer.read(model)
        if backbone is None:
            raise ValueError(
                f"MagiCapture does not train {type(model.model).__name__}: take SD1.5, SD2.1, SDXL"
                " or a transformer of docs/model_families.md"
            )
        self._backbone = backbone
        self._sampling = _flow_sampling(model)
        # A shift that a node has set is meant for the pictures that are made here.
        self._shift_is_set = "model_sampling" in getattr(model, "object_patches", {})
        self.device, self.dtype = device, dtype
        host = model.model
        config = {**host.model_config.unet_config, "dtype": dtype}
        config.pop("disable_unet_model_creation", None)
        self.network: nn.Module = type(host.diffusion_model)(
            **config, device=device, operations=_operations(dtype if in_float8 else None)
        )
        if in_float8:
            self._widen_outside_of_blocks()
        if is_filled:
            fill(self.network, patched_weights(model, _PREFIX), takes_others=True)
        self.network.requires_grad_(False).eval()
        copy_for_norms(self.network)
        self._host = _beside(host, self.network, self._sampling)
        self._format = _without_inference_tensors(host.latent_format)
        self.latent_channels = int(self._format.latent_channels)
        self.has_time = self._format.latent_dimensions == 3
        self.pixels_per_latent = backbone.pixels
        self.native_side = backbone.native_side
        self._is_saving = gradient_checkpointing
        self.adapters: dict[str, Adapter] = {}

    def _widen_outside_of_blocks(self) -> None:
        """What is before and behind the blocks is little, and its rounding would go through all of
        them."""
        blocks = {kind.attribute for kind in self._backbone.family.kinds}
        for name, layer in self.network.named_modules():
            if isinstance(layer, Float8Linear) and name.split(".")[0] not in blocks:
                layer.widen()

    def add_lora(
        self,
        rank: int,
        generator: torch.Generator,
        blocks: str = "all",
        with_mlp: bool = False,
        adapter: str = ADAPTERS[0],
    ) -> None:
        """LoRA, or another kind of adapter, on the linear layers of the attentions of some blocks,
        and of their MLPs. blocks: as users name them. ValueError when there are none of that
        name."""
        chosen = self._backbone.parse_layers(blocks)
        parts = (*_ATTENTION, *_MLP) if with_mlp else _ATTENTION
        for kind in self._backbone.family.kinds:
            own: Any = getattr(self.network, kind.attribute)
            for index, block in enumerate(own):
                if Block(kind.letter, index) not in chosen:
                    continue
                for name, module in block.named_modules():
                    if isinstance(module, nn.Linear) and not {*name.split(".")}.isdisjoint(parts):
                        key = f"{_PREFIX}{kind.attribute}.{index}.{name}"
                        self.adapters[key] = new_adapter(adapter, module, rank, generator)
        if self._is_saving:
            self._checkpoint_blocks()

    def _checkpoint_blocks(self) -> None:
        for kind in self._backbone.family.kinds:
            own: Any = getattr(self.network, kind.attribute)
            for index, block in enumerate(own):
                own[index] = _TwiceComputed(block)

    def blocks(self, watched_size: tuple[int, int] | None = None) -> list[nn.Module]:
        """Those of its kinds."""
        watched = () if watched_size is None else self._backbone.layout_blocks(watched_size)
        return [
            block
            for kind in self._backbone.family.kinds
            for index, block in enumerate(getattr(self.network, kind.attribute))
            if Block(kind.letter, index) not in watched
        ]

    def process_in(self, latents: Tensor) -> Tensor:
        """B C h w or, of one picture in time, B C 1 h w."""
        scaled: Tensor = self._format.process_in(latents)
        return scaled[:, :, 0] if scaled.ndim == 5 else scaled

    def process_out(self, latents: Tensor) -> Tensor:
        """With a time where the VAE has one."""
        scaled: Tensor = self._format.process_out(self._in_time(latents))
        return scaled

    def _in_time(self, latents: Tensor) -> Tensor:
        return latents[:, :, None] if self.has_time else latents

    def draw_times(
        self, count: int, size: tuple[int, int], of_lora: bool, generator: torch.Generator
    ) -> Tensor:
        """Logit-normal (SD3, arXiv 2403.03206), shifted as the model's sampling is, by the tokens
        of the picture."""
        drawn = torch.randn(count, generator=generator) + self.shift(size)
        return drawn.sigmoid().clamp(_LEAST_SIGMA, 1.0).to(self.device)

    def shift(self, size: tuple[int, int]) -> float:
        """By how much the logit of sigma is larger at a latent of rows, columns. Models of Flux's
        sampling have a line of the number of tokens, SD3's and others half its logarithm; the
        model's own shift belongs to the size that it was trained on."""
        import comfy.model_sampling as rules

        cell = self._backbone.tokens.patch
        tokens = math.prod(-(-side // cell) for side in size)
        native = (self.native_side / (self.pixels_per_latent * cell)) ** 2
        shift = float(self._sampling.shift)
        if isinstance(self._sampling, rules.ModelSamplingFlux):
            return shift if self._shift_is_set else shift + _FLUX_LINE * (tokens - native)
        return math.log(shift) + (0.0 if self._shift_is_set else math.log(tokens / native) / 2)

    def draw_early_times(self, count: int, until: int, generator: torch.Generator) -> Tensor:
        """All alike."""
        drawn = torch.rand(count, generator=generator) * (until / 1000)
        return drawn.clamp(min=_LEAST_SIGMA).to(self.device)

    def is_early(self, times: Tensor, until: int) -> Tensor:
        """In thousandths of sigma."""
        return times < until / 1000

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """As the host mixes them."""
        mixed: Tensor = self._sampling.noise_scaling(times, noise, latents)
        return mixed

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The velocity."""
        scale = float(getattr(self._sampling, "noise_scale", 1.0))
        return scale * noise - latents

    def clean(self, noisy: Tensor, output: Tensor, times: Tensor) -> Tensor:
        """x0 = x - sigma * v."""
        return noisy - times.reshape(-1, 1, 1, 1) * output

    def condition(
        self,
        encoded: Sequence[EncodedPrompt],
        prompts: Sequence[EncodedPrompt],
        size: tuple[int, int],
    ) -> FlowCondition:
        """As the host makes it of conditionings."""
        return FlowCondition(encoded, [self._inputs(prompt, size) for prompt in encoded])

    def _inputs(self, prompt: EncodedPrompt, size: tuple[int, int]) -> dict[str, Any]:
        guidance = self._backbone.family.guidance
        told = {} if guidance is None else {"guidance": guidance}
        latent = self._in_time(torch.zeros(1, self.latent_channels, *size, device=self.device))
        conds = self._host.extra_conds(
            **{**told, **prompt.options},
            cross_attn=prompt.context.to(self.device),
            device=self.device,
            noise=latent,
            width=size[1] * self.pixels_per_latent,
            height=size[0] * self.pixels_per_latent,
            prompt_type="positive",
        )
        return {name: cond.process_cond(batch_size=1).cond for name, cond in conds.items()}

    def predict(
        self, noisy: Tensor, times: Tensor, condition: FlowCondition, watched: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """One sample after the other: their prompts differ in length. Maps are those of the blocks
        that the layout is read from."""
        outputs: list[Tensor] = []
        maps: list[Tensor | None] = []
        for row, (prompt, inputs) in enumerate(
            zip(condition.prompts, condition.inputs, strict=True)
        ):
            seen = MapList()
            part = slice(row, row + 1)
            shown = self._in_time(noisy[part]).float()
            options = self._options(prompt, noisy.shape[-2:], seen if watched else None)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                clean = self._host.apply_model(
                    shown, times[part], transformer_options=options, **inputs
                )
            sigma = times[part].reshape(-1, *(1 for _ in shown.shape[1:]))
            # Not the network's own output: some have the other sign.
            velocity = (shown - clean.float()) / sigma
            outputs.append(velocity[:, :, 0] if self.has_time else velocity)
            maps.append(seen.read())
        return torch.cat(outputs), join_maps(maps)

    def _options(
        self, prompt: EncodedPrompt, size: Sequence[int], seen: MapList | None
    ) -> dict[str, Any]:
        """The host's transformer options of a call. seen: takes the maps of the prompt's
        placeholders, 1 heads 2 H W each; None to look at nothing."""
        latent_size = (int(size[0]), int(size[1]))
        options = {
            "transformer_options": {
                "optimized_attention_override": _attention,
                "uuids": [prompt],
                "cond_or_uncond": [0],
            }
        }
        if seen is None or not prompt.spans:
            return options["transformer_options"]
        words = (prompt.spans * 2)[:2]

        def look(view: LayerView) -> None:
            # As the network computes: in half precision what is summed is not.
            with torch.autocast(self.device.type, enabled=False):
                shares = self._backbone.word_attention(view, words, prompt.context.shape[1])
            seen.add(shares.float().unflatten(-1, view.grid))

        blocks = self._backbone.layout_blocks(latent_size)
        watch = Watch(blocks, (prompt,), 1, text=look)
        watched = self._backbone.with_watch(options, watch)
        found: dict[str, Any] = watched["transformer_options"]
        return found

    def schedule(self, steps: int) -> list[float]:
        """As the host's simple schedule."""
        return [float(self._sampling.percent_to_sigma(step / steps)) for step in range(steps)]

    def renoised(self, noisy: Tensor, clean: Tensor, now: float, after: float | None) -> Tensor:
        """Euler."""
        return clean + (noisy - clean) * ((after or 0.0) / now)


def join_maps(maps: Sequence[Tensor | None]) -> Tensor | None:
    """The maps of several calls as one: B M 2 H W. None where no call has any; one without a word
    among others looks at none."""
    with_words = [of_call for of_call in maps if of_call is not None]
    if not with_words:
        return None
    blank = torch.zeros_like(with_words[0])
    return torch.cat([blank if of_call is None else of_call for of_call in maps])


class _TwiceComputed(nn.Module):
    """A block whose inner activations are computed anew for the gradient instead of kept."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        again = recount(kwargs.get("transformer_options") or {})

        def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            again()
            return self.block(
                *(_own(value) for value in args),
                **{name: _own(value) for name, value in kwargs.items()},
            )

        # Which block it is the class writes into one and the same table.
        as_now = {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in kwargs.items()
        }
        return checkpoint(run, args, as_now, use_reentrant=False)


def _own(value: Any) -> Any:
    """What a block may write into: what it is given without gradients gets some when it adds to
    it."""
    if isinstance(value, Tensor):
        return value.clone()
    return dict(value) if isinstance(value, dict) else value


def copy_for_norms(network: nn.Module) -> None:
    """Gives every norm a copy of its input: it keeps that for its gradient, and the host adds to
    what came in afterwards."""
    for module in network.modules():
        if type(module).__name__.endswith("Norm") and not any(module.children()):
            module.register_forward_pre_hook(_with_a_copy)


def _with_a_copy(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not (torch.is_grad_enabled() and args and args[0].requires_grad):
        return None
    return (args[0].clone(), *args[1:])


def _attention(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """torch's own: others of the host's pass no gradients."""
    from comfy.ldm.modules.attention import attention_pytorch

    out: Tensor = attention_pytorch(*args, **kwargs)
    return out


def _flow_sampling(model: Any) -> Any:
    """The model's sampling. ValueError unless it is flow matching in one of the host's two
    forms."""
    import comfy.model_sampling as rules

    sampling = model.get_model_object("model_sampling")
    # Not the model's own type: nodes give it another rule.
    rule = type(sampling).calculate_denoised
    known = (rules.ModelSamplingDiscreteFlow, rules.ModelSamplingFlux)
    if rule is not rules.CONST.calculate_denoised or not isinstance(sampling, known):
        name = rule.__qualname__.split(".")[0]
        raise ValueError(
            f"MagiCapture trains transformers that predict a flow, got {type(sampling).__name__}"
            f" ({name}): remove the node that sets how this model is sampled"
        )
    return sampling


def _operations(float8: torch.dtype | None) -> Any:
    """The host's layers with weights of their own: where it reads files as it needs them, these
    have none before a file is read into them, except in classes that read in a way of their own.
    float8: what linear layers compute in that keep their weights in fp8; None for none."""
    import comfy.ops

    plain: Any = comfy.ops.disable_weight_init

    def own(layer: Any) -> Any:
        def read(module: Any, *args: Any) -> None:
            layer._load_from_state_dict(module, *args)

        return type(layer.__name__, (layer,), {"_load_from_state_dict": read})

    layers = {layer.__name__: own(layer) for layer in (plain.Linear, plain.Embedding)}
    if float8 is not None:
        layers["Linear"] = type("Linear", (Float8Linear, layers["Linear"]), {"compute": float8})
    return type("Operations", (plain,), layers)


def _beside(host: Any, network: nn.Module, sampling: Any) -> Any:
    """The host's model with another network, by whose precision it goes; the model stays as it
    is."""
    changed = copy.copy(host)
    parts = {"diffusion_model": network, "model_sampling": sampling}
    changed.__dict__["_modules"] = {**host._modules, **parts}
    changed.__dict__.update(manual_cast_dtype=None, current_patcher=None)
    return changed


def _without_inference_tensors(latent_format: Any) -> Any:
    """A latent format that gradients pass: loaders make theirs in inference mode."""
    changed = copy.copy(latent_format)
    for name, value in vars(latent_format).items():
        if isinstance(value, Tensor):
            setattr(changed, name, value.clone())
    return changed
