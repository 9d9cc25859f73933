"""The parts of a LoRA as what each adds to what its layer gives: weights stay as they are.

How a kind of adapter (LoRA, LoHa, LoKr, OFT, BOFT) makes that of a layer's input is the host's
matter: its own adapters do so in bypass mode. What needs the layer's weight itself (DoRA, GLoRA) is
in `weight_adapters.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.lora_patches import (
    DORA,
    TURNED_DORA,
    check_fit,
    in_layers_form,
    is_enlarged,
    layer_of,
    lora_patches,
    shape_of,
)
from ..models.patched_weights import patched_weight
from .weight_adapters import Glora, Rescale, rescale_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_ELSE = (
    "Take a plain LoRA, LoHa, LoKr or OFT, or load this one with Load LoRA, for all of the picture"
)


@dataclass(eq=False)
class LayerAdapter:
    """What a LoRA adds to one layer of a network.

    layer: the layer's name in the host's model; module: the layer; adapter: the host's; part: of a
    layer that holds several of the LoRA's layers in one (q, k and v), which of the two sides of its
    weight is cut (0 what comes out, 1 what goes in), from where, and how long; turn: of adapters
    that turn what comes out, block by block of its channels, how that differs from doing nothing: K
    n n; rescale: of DoRA.
    """

    layer: str
    module: nn.Module
    adapter: Any
    part: tuple[int, int, int] | None = None
    turn: Tensor | None = None
    rescale: Rescale | None = None

    def to(self, device: torch.device) -> None:
        """Moves its weights. They are those of one MODEL's node, in single precision or as in their
        file."""
        kind = type(self.adapter.weights)
        self.adapter.weights = kind(
            weight.to(device) if isinstance(weight, Tensor) else weight
            for weight in self.adapter.weights
        )
        self.turn = None if self.turn is None else self.turn.to(device)
        if self.rescale is not None:
            self.rescale.factor = self.rescale.factor.to(device)

    def added(self, x: Tensor, out: Tensor) -> Tensor:
        """What the adapter adds to the layer's output `out` of an input x: as out, or as the part
        of it."""
        adapter = self.adapter
        source, base = x, out
        if self.part is not None:
            side, start, length = self.part
            if side == 1:
                source = x[..., start : start + length]
            else:
                base = out[..., start : start + length]
        if self.turn is not None:
            # It turns what the weight makes, so not the bias.
            return self._turned(base - self._bias(base), self.turn.to(base))
        if isinstance(adapter, Glora):
            return adapter.added(source, lambda part: self._product(part, x))
        if self.rescale is not None:
            plain = base - self._bias(base)
            return self.rescale.added(adapter, source, plain, lambda part: self._product(part, x))
        change: Tensor = adapter.h(source, base)
        return change

    def _product(self, source: Tensor, x: Tensor) -> Tensor:
        """What the layer's weight, or the part of it, makes of another input than x."""
        side, start, length = self.part or (-1, 0, 0)
        if side == 1:
            whole = torch.zeros_like(x)
            whole[..., start : start + length] = source
            source = whole
        # Not the module, whose hooks would act on this too.
        out: Tensor = self.module.forward(source)
        if side == 0:
            out = out[..., start : start + length]
        return out - self._bias(out)

    def _turned(self, out: Tensor, turn: Tensor) -> Tensor:
        blocks, size = turn.shape[:2]
        if self.adapter.is_conv:
            cells = out.unflatten(1, (blocks, size))  # B K n h w
            return torch.einsum("kmn,bkn...->bkm...", turn, cells).flatten(1, 2)
        tokens = out.unflatten(-1, (blocks, size))  # B N K n
        return torch.einsum("kmn,...kn->...km", turn, tokens).flatten(-2)

    def _bias(self, out: Tensor) -> Tensor | float:
        bias = getattr(self.module, "bias", None)
        if not isinstance(bias, Tensor):
            return 0.0
        bias = bias.to(out)
        if self.part is not None and self.part[0] == 0:
            bias = bias[self.part[1] : self.part[1] + self.part[2]]
        return bias.view(-1, *[1] * (out.ndim - 2)) if self.adapter.is_conv else bias


class Difference:
    """What a LoRA's file adds to a bias, a norm or a whole weight, as an adapter of the host's.

    weights: the difference; is_conv: whether what comes out has channels before rows and columns.
    """

    name = "difference"

    def __init__(self, module: nn.Module, of: str, change: Tensor, strength: float):
        self._module, self._of, self._strength = module, of, strength
        self.weights: tuple[Tensor, ...] = (change,)
        self.is_conv = isinstance(module, (nn.modules.conv._ConvNd, nn.GroupNorm))

    @classmethod
    def read(cls, module: nn.Module, of: str, patch: Any, strength: float) -> Difference | None:
        """Of a patch of the host's; None for what is no difference, or of a layer of which it is
        not known what its weight does."""
        kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.GroupNorm, nn.LayerNorm)
        own = getattr(module, of, None)
        if not isinstance(patch, tuple) or patch[0] != "diff" or not isinstance(own, Tensor):
            return None
        change = patch[1][0]
        if not isinstance(module, kinds) or change.shape != own.shape:
            return None
        return cls(module, of, change, strength)

    def h(self, x: Tensor, out: Tensor) -> Tensor:
        """What is added, of the layer's input x."""
        module, change = self._module, self.weights[0].to(out)
        if self._of == "bias":
            added = change.view(-1, *[1] * (out.ndim - 2)) if self.is_conv else change
        elif isinstance(module, nn.modules.conv._ConvNd):
            convolve = (F.conv1d, F.conv2d, F.conv3d)[change.ndim - 3]
            added = convolve(
                x, change, None, module.stride, module.padding, module.dilation, module.groups
            )
        elif isinstance(module, nn.GroupNorm):
            added = F.group_norm(x, module.num_groups, change, None, module.eps)
        elif isinstance(module, nn.LayerNorm):
            added = F.layer_norm(x, module.normalized_shape, change, None, module.eps)
        else:
            added = F.linear(x, change)
        return added * self._strength


@dataclass(frozen=True, eq=False)
class Adapters:
    """A LoRA on a model. layers: what it adds to which; left_out: names of what it holds beside
    that, which cannot act in places."""

    layers: tuple[LayerAdapter, ...]
    left_out: tuple[str, ...]


def check_host() -> None:
    """ValueError on a host whose LoRAs can only be merged into the weights."""
    from comfy import weight_adapter

    has_parts = hasattr(weight_adapter.base.WeightAdapterBase, "h")
    if not has_parts or not hasattr(weight_adapter, "BypassForwardHook"):
        raise ValueError(
            "this ComfyUI can only merge a LoRA into all of a model (its LoRAs have no bypass mode,"
            " which came after 0.3.64): update ComfyUI to use MagicFace Concept LoRA"
        )


def adapters_of(
    model: ModelPatcher, name: str, weights: Mapping[str, Tensor], strength: float
) -> Adapters:
    """A LoRA as adapters of a model's layers.

    name: for messages; weights: by the names in its file; strength: what each adds is multiplied
    with. ValueError when it is for another model, is damaged, or changes layers in a way that
    cannot act in places.
    """
    import comfy.lora

    check_host()
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    layers, left_out = [], []
    for key, patch in lora_patches(name, weights, names).items():
        layer = _layer_adapter(model, name, key, patch, strength)
        if layer is None:
            left_out.append(key if isinstance(key, str) else key[0])
        else:
            layers.append(_acting_in_places(model, name, layer, key, strength))
    if not layers:
        raise ValueError(
            f"LoRA '{name}' has nothing for the layers of this model"
            f" ({type(model.model).__name__}): it was made for another kind of model. Its tensors"
            f" are called {_some(sorted(weights))}"
        )
    return Adapters(tuple(layers), tuple(left_out))


def _layer_adapter(
    model: ModelPatcher, name: str, key: Any, patch: Any, strength: float
) -> LayerAdapter | None:
    """None for what is neither an adapter nor a difference of a layer. ValueError when it does not
    fit the layer."""
    from comfy import weight_adapter

    weight, part, convert = key if isinstance(key, tuple) and len(key) > 2 else (key, None, None)
    if isinstance(key, tuple) and len(key) == 2:
        weight, part = key
    layer, _, of = weight.rpartition(".")
    module = layer_of(model.model, weight)
    if convert is not None or module is None:
        return None
    cut = None if part is None else tuple(part)
    check_fit(name, weight, module, patch, cut)
    if not isinstance(patch, weight_adapter.base.WeightAdapterBase):
        difference = None if part else Difference.read(module, of, patch, strength)
        return None if difference is None else LayerAdapter(layer, module, difference)
    shape = shape_of(module, "weight", cut)
    # What norms and tables do is no product of their weight and what goes in.
    if of != "weight" or shape is None or len(shape) < 2 or isinstance(module, nn.Embedding):
        return None
    if not is_enlarged(patch):
        patch = in_layers_form(patch, shape)
    # Tells the adapter what kind of layer it is for.
    hook = weight_adapter.bypass.BypassForwardHook(module, patch, multiplier=strength)
    turn = _turn(patch, key, strength, shape[0]) if _is_own(patch, "g") else None
    return LayerAdapter(layer, module, hook.adapter, cut, turn)


def _turn(adapter: Any, key: Any, strength: float, width: int) -> Tensor:
    """How an adapter turns `width` channels, by what it makes of a weight that does nothing. The
    host's own way to turn what comes out fails for most shapes, and counts the strength in another
    way than when it merges."""
    if adapter.name == "boft" and (rescale := adapter.weights[1]) is not None:
        # For a convolution it has the sides of a kernel, which what is turned here has not.
        turns, _, *others = adapter.weights
        adapter = type(adapter)(adapter.loaded_keys, (turns, rescale.reshape(-1, 1), *others))
    # Those of one level of blocks turn each by itself.
    size = adapter.weights[0].shape[-1] if adapter.name == "oft" else width
    idle = torch.eye(size).repeat(width // size, 1)
    turned: Tensor = adapter.calculate_weight(idle.clone(), key, strength, 1.0, None, lambda x: x)
    change: Tensor = turned - idle
    blocks: Tensor = change.reshape(-1, size, size)
    return blocks


def _acting_in_places(
    model: ModelPatcher, name: str, layer: LayerAdapter, key: Any, strength: float
) -> LayerAdapter:
    """A layer's adapter in a form that can act in a part of the picture. ValueError when there is
    none."""
    adapter, kind = layer.adapter, layer.adapter.name
    if isinstance(adapter, Difference):
        return layer
    if _is_own(adapter, "bypass_forward"):
        # The host's GLoRA does not do in bypass mode what it does when it is merged.
        own = None
        if kind == Glora.name:
            shape = _weight_of(model, layer, key).shape
            own = Glora.read(layer.module, adapter, shape, strength)
        if own is None:
            raise ValueError(
                f"LoRA '{name}' is of a kind ({kind}) that changes what goes into a layer"
                f" ({layer.layer}), in a form that is not known. {_ELSE}"
            )
        return replace(layer, adapter=own)
    weights = adapter.weights
    is_whole = is_enlarged(adapter) or (
        kind in TURNED_DORA and weights[TURNED_DORA[kind]] is not None
    )
    if not is_whole and kind in DORA and weights[DORA[kind]] is not None:
        rescale = rescale_of(adapter, key, _weight_of(model, layer, key), strength)
        if rescale is not None:
            adapter.multiplier = 1.0
            return replace(layer, rescale=rescale)
        is_whole = True
    if is_whole:
        raise ValueError(
            f"LoRA '{name}' is one that sets the whole weight of a layer ({layer.layer}): it cannot"
            f" act in a part of the picture only. {_ELSE}"
        )
    return layer


def _weight_of(model: ModelPatcher, layer: LayerAdapter, key: Any) -> Tensor:
    """A layer's weight, or the part of it, as the model has it."""
    weight = patched_weight(model, key if isinstance(key, str) else key[0])
    return weight if layer.part is None else weight.narrow(*layer.part).clone()


def _is_own(adapter: Any, method: str) -> bool:
    """Whether a kind of adapter has its own version of a method."""
    from comfy import weight_adapter

    base = weight_adapter.base.WeightAdapterBase
    return getattr(type(adapter), method) is not getattr(base, method)


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")


Added = Callable[[nn.Module, Tensor, Tensor], "Tensor | None"]
"""What a layer gives instead of its output: (layer, input, output), None to leave it."""


class Injection:
    """Lets somebody into the layers of a model, as one of the host's injections: while the host has
    the model loaded with them, and until they are taken out again.

    acts: for each layer who is asked.
    """

    def __init__(self, patcher: ModelPatcher, key: str, acts: Mapping[nn.Module, Added]):
        from comfy.patcher_extension import PatcherInjection

        self._patcher, self._key, self._acts = patcher, key, acts
        self._handles: list[Any] = []
        injection = PatcherInjection(inject=self._inject, eject=self._eject)
        with patcher.use_ejected():
            patcher.set_injections(key, [injection])

    def ensure(self) -> None:
        """Before the model is called: hosts that find it loaded may not load it again."""
        if not self._handles:
            self._patcher.eject_model()
            self._patcher.inject_model()

    def remove(self) -> None:
        """The model is as before, and who was let in is let go: a run that holds its injection
        would otherwise keep a MODEL until the garbage collector comes, and the host, which asks
        at the next loading what is left of it, would warn of a leak or stumble over it."""
        with self._patcher.use_ejected():
            self._patcher.remove_injections(self._key)
        self._eject(self._patcher)
        self._acts = {}

    def _inject(self, patcher: ModelPatcher) -> None:
        self._eject(patcher)
        self._handles = [
            module.register_forward_hook(_asking(act)) for module, act in self._acts.items()
        ]

    def _eject(self, patcher: ModelPatcher) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def is_own_injection(injection: Any) -> bool:
    """Whether one of the host's injections is of an `Injection`."""
    return isinstance(getattr(injection.inject, "__self__", None), Injection)


def _asking(act: Added) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return None
        return act(module, args[0], output)

    return hook
