"""What a LoRA's file has for the layers of a model, as the host reads it, and whether that fits
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...magic.messages import shown

DORA = {"lora": 4, "loha": 7, "lokr": 8}
"""Where the weights of a kind of adapter have the scales of DoRA."""
TURNED_DORA = {"oft": 3, "boft": 3}
"""Where adapters that turn have them."""
_DORA = {**DORA, **TURNED_DORA, "glora": 5}
_SHAPE = {"lora": 5}
"""Where they have the shape that a weight is to be enlarged to."""
_ALPHA = ".alpha"

Part = tuple[int, int, int]
"""Of a layer's weight: which of its sides is cut, from where, and how long it is."""


def lora_patches(
    name: str, weights: Mapping[str, Tensor], layers: Mapping[str, Any]
) -> dict[Any, Any]:
    """The host's patches of a LoRA, by the names of weights. name: of the file, for messages;
    layers: the names that the host knows for each weight. ValueError for a file that lacks tensors
    of a layer, or has some of another shape than any LoRA."""
    import comfy.lora
    import comfy.lora_convert

    try:
        converted = comfy.lora_convert.convert_lora(dict(weights))
        for key, tensor in converted.items():
            is_alpha = key.endswith(_ALPHA) and key.removesuffix(_ALPHA) in layers
            if is_alpha and tensor.numel() != 1:
                raise ValueError(
                    f"LoRA '{shown(name)}' is damaged: '{shown(key)}' is to be one number, and is a"
                    f" tensor of {_size(tensor.shape)}. {_ELSE}"
                )
        patches: dict[Any, Any] = comfy.lora.load_lora(converted, layers, log_missing=False)
    except KeyError as error:
        raise ValueError(
            f"LoRA '{shown(name)}' is not whole: it lacks '{shown(str(error.args[0]))}'. {_ELSE}"
        ) from error
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"LoRA '{shown(name)}' has tensors of shapes that no LoRA has. {_ELSE}"
        ) from error
    return {key: _with_alpha(patch) for key, patch in patches.items()}


def _with_alpha(patch: Any) -> Any:
    """A patch whose alpha the host can count with: its LoKr of two whole matrices divides alpha by
    itself, and its BOFT stumbles without one."""
    kind, weights = getattr(patch, "name", ""), list(getattr(patch, "weights", ()))
    if kind == "lokr" and weights[0] is not None and weights[1] is not None:
        weights[2] = None
    elif kind == "boft" and weights[2] is None:
        weights[2] = 0.0
    else:
        return patch
    return type(patch)(patch.loaded_keys, tuple(weights))


def is_enlarged(adapter: Any) -> bool:
    """Whether one of the host's adapters sets a weight to another shape than the model has it."""
    place = _SHAPE.get(adapter.name)
    return place is not None and adapter.weights[place] is not None


def in_layers_form(adapter: Any, shape: tuple[int, ...]) -> Any:
    """One of the host's adapters whose tensors are of the form that a layer's weight has: what the
    host merges in other forms it cannot add to what the layer gives. shape: of the weight, or the
    part of it. Errors of any kind where they do not fit."""
    form = _FORMS.get(adapter.name)
    weights = None if form is None else form(adapter.weights, shape)
    return adapter if weights is None else type(adapter)(adapter.loaded_keys, weights)


_Weights = tuple[Any, ...]
"""The tensors of an adapter and what else the host has with them."""


def _lora_in_form(weights: _Weights, shape: tuple[int, ...]) -> _Weights:
    up, down, alpha, core, *others = weights
    if core is not None and core.shape[0] != core.shape[1]:
        # The host takes its shape from one of the ranks only, and merges none of two.
        raise ValueError(f"a core of {_size(core.shape)} has two ranks")
    if len(shape) == 2:
        # Convolutions of one cell.
        up, down = up.flatten(1), down.flatten(1)
        if core is not None and core.ndim > 2:
            down, core = _matrix(core) @ down.float(), None
    elif core is not None:
        up, down = (
            each.reshape(*each.shape, *[1] * len(shape[2:])) if each.ndim == 2 else each
            for each in (up, down)
        )
    return (up, down, alpha, core, *others)


def _loha_in_form(weights: _Weights, shape: tuple[int, ...]) -> _Weights | None:
    first_a, first_b, alpha, second_a, second_b, first, second, scales = weights
    if len(shape) != 2 or first is None:
        return None
    # With cores the host's first matrices lie on their sides.
    first_a, second_a = (
        rows.float().T @ _matrix(core) for rows, core in ((first_a, first), (second_a, second))
    )
    return (first_a, first_b.float(), alpha, second_a, second_b.float(), None, None, scales)


def _lokr_in_form(weights: _Weights, shape: tuple[int, ...]) -> _Weights | None:
    left, right, alpha, left_a, left_b, right_a, right_b, core, scales = weights
    # Of two products the host merges by the rank of one, and adds by the rank of the other.
    has_two_ranks = left is None and right is None and left_b.shape[0] != right_b.shape[0]
    has_matrix = core is None if right is None else right.ndim == 2
    if len(shape) == 2 and has_matrix and not has_two_ranks:
        return None
    rank = None
    if left is None:
        rank, left = left_b.shape[0], left_a.float() @ left_b.float()
    if right is None:
        rank = right_b.shape[0]
        if core is None:
            right = right_a.float() @ right_b.float()
        else:
            right = torch.einsum(
                "ij...,jc,ir->rc...", core.float(), right_b.float(), right_a.float()
            )
    if rank is not None and alpha is not None:
        right = right * (alpha / rank)
    if left.shape[0] * right.shape[0] != shape[0]:
        raise ValueError(f"{left.shape[0]} times {right.shape[0]} rows are not {shape[0]}")
    # The host's merging, by which DoRA's scales are measured, does nothing for one that is not.
    right = right.reshape(-1, shape[1] // left.shape[1], *shape[2:]).contiguous()
    return (left, right, *[None] * 6, scales)


_FORMS = {"lora": _lora_in_form, "loha": _loha_in_form, "lokr": _lokr_in_form}
"""By the host's names of its kinds of adapters."""


def _matrix(core: Tensor) -> Tensor:
    """A core between two matrices that is of one cell."""
    if core[0, 0].numel() != 1:
        raise ValueError(f"a core of {_size(core.shape)} is of more than one cell")
    return core.float().flatten(1)


def shape_of(module: nn.Module, of: str, part: Part | None = None) -> tuple[int, ...] | None:
    """Of a layer's weight or bias, or of a part of it. By its own figures where it has some: what
    is quantised may lie in memory in another shape."""
    own: Any = module
    if of == "weight" and hasattr(module, "in_features") and hasattr(module, "out_features"):
        shape: tuple[int, ...] = (int(own.out_features), int(own.in_features))
    else:
        tensor = getattr(module, of, None)
        if not isinstance(tensor, Tensor):
            return None
        shape = tuple(tensor.shape)
    if part is None:
        return shape
    side, _, length = part
    return (*shape[:side], length, *shape[side + 1 :])


def check_finite(name: str, weights: Mapping[str, Tensor]) -> None:
    """ValueError for a LoRA with numbers that are none. name: for the message."""
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise ValueError(
                f"LoRA '{name}' has numbers that are none (NaN or infinite) in {key}: its training"
                " has failed. Take another"
            )


def check_lora(name: str, weights: Mapping[str, Tensor], model: Any, clip: Any) -> None:
    """ValueError when a LoRA that the host is to merge into a MODEL and a CLIP has numbers that are
    none, does not fit, is damaged, or has nothing for them: the host only writes that into the log.
    name: for messages."""
    import comfy.lora

    check_finite(name, weights)
    network, encoder = model.model, clip.cond_stage_model
    names = comfy.lora.model_lora_keys_unet(network, {})
    patches = lora_patches(name, weights, comfy.lora.model_lora_keys_clip(encoder, names))
    # Each looks at the layers that it has.
    check_patches(name, patches, network)
    check_patches(name, patches, encoder)
    if not patches:
        raise ValueError(
            f"LoRA '{shown(name)}' has nothing for this model ({type(network).__name__}) and its"
            " text encoder: it was made for another kind of model"
        )


def check_patches(name: str, patches: Mapping[Any, Any], network: nn.Module) -> None:
    """ValueError when some of a LoRA's patches do not fit a network of the host's. name: of the
    LoRA."""
    for key, patch in patches.items():
        weight, part, *convert = (key, None) if isinstance(key, str) else key
        # What is turned into another order of channels first is not looked at.
        module = None if convert else layer_of(network, weight)
        if module is not None:
            check_fit(name, weight, module, patch, part)


def layer_of(network: nn.Module, weight: str) -> nn.Module | None:
    """The layer of a weight. None where a network has none: the host knows names for layers that
    others of its kind have (Flux's for Chroma), and merges nothing there."""
    try:
        return network.get_submodule(weight.rpartition(".")[0])
    except AttributeError:
        return None


def check_fit(name: str, weight: str, module: nn.Module, patch: Any, part: Part | None) -> None:
    """ValueError when what a LoRA has for a layer cannot be added to its weight: it was made for
    another model, or is damaged. Only shapes are looked at, and nothing of one that enlarges the
    weight.

    name: of the LoRA; weight: of the weight in the host's model; module: the layer; patch: the
    host's, an adapter, a difference or a new weight; part: of the weight that it is for.
    """
    from comfy import weight_adapter

    shape = shape_of(module, weight.rpartition(".")[2], part)
    if shape is None:
        return
    if isinstance(patch, weight_adapter.base.WeightAdapterBase):
        if is_enlarged(patch):
            return
        tensors = [tensor for tensor in patch.weights if isinstance(tensor, Tensor)]
        is_fitting = _fits(module, patch, shape)
    elif isinstance(patch, tuple) and patch[0] in ("diff", "set"):
        tensors = [patch[1][0]]
        is_fitting = tensors[0].shape == shape
    else:
        return
    if not is_fitting:
        raise ValueError(
            f"LoRA '{shown(name)}' does not fit: '{weight}' of this model is {_size(shape)}, and"
            f" the LoRA has {' and '.join(_size(tensor.shape) for tensor in tensors)} for it. It"
            " was made for another model, or is damaged: choose one that was made for this model"
        )


_ELSE = "Fetch it again, or choose another"


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _fits(module: nn.Module, adapter: Any, shape: tuple[int, ...]) -> bool:
    """Whether an adapter of the host's makes of a layer's input what its weight makes of it. shape:
    of that, or the part of it."""
    try:
        if not _scales_fit(adapter, shape):
            return False
        if adapter.name in TURNED_DORA:
            *levels, blocks, size, columns = adapter.weights[0].shape
            is_whole = size == columns and blocks * size == shape[0]
            rescale = adapter.weights[1]
            if levels and rescale is not None and rescale.numel() != shape[0]:
                return False
            # Each level turns pairs of channels, twice as far apart as in the one before.
            return is_whole and not any(shape[0] % (size // 2 * 2**count) for count in levels)
        if adapter.name == "glora":
            return glora_order(adapter, shape) is not None
        return _gives(module, adapter, shape)
    # What an adapter says of shapes that it cannot take is of every kind.
    except Exception:
        return False


def _scales_fit(adapter: Any, shape: tuple[int, ...]) -> bool:
    """Whether DoRA's scales, if there are some, are for the rows or the columns of a weight."""
    place = _DORA.get(adapter.name)
    scales = None if place is None else adapter.weights[place]
    if scales is None:
        return True
    rest = [1] * len(shape[2:])
    norms = (shape[0], 1, *rest) if scales.shape[0] == shape[0] else (1, shape[1], *rest)
    return bool(torch.broadcast_shapes(scales.shape, norms, shape) == shape)


def _gives(module: nn.Module, adapter: Any, shape: tuple[int, ...]) -> bool:
    """By shapes alone, without numbers: what the adapter adds has that of the layer's output."""
    from comfy import weight_adapter

    # Older hosts have no way to ask for what is added, and merge.
    if not hasattr(weight_adapter, "BypassForwardHook"):
        return adapter.name != "lora" or _is_of_shape(adapter, shape)
    weights = (
        tensor.to("meta") if isinstance(tensor, Tensor) else tensor for tensor in adapter.weights
    )
    # Without numbers before its form is changed, for which matrices are multiplied.
    empty = in_layers_form(type(adapter)(adapter.loaded_keys, tuple(weights)), shape)
    # Tells it what kind of layer it is for.
    weight_adapter.bypass.BypassForwardHook(module, empty)
    weight = torch.empty(shape if len(shape) > 1 else (*shape, 1), device="meta")
    if empty.is_conv:
        # Only without numbers do convolutions take more sides than these.
        if any(isinstance(own, Tensor) and own.ndim > len(shape) for own in empty.weights):
            return False
        sides = [
            dilation * (size - 1) + 1
            for dilation, size in zip(empty.kw_dict["dilation"], shape[2:], strict=True)
        ]
        channels = shape[1] * empty.kw_dict["groups"]
        x = torch.empty(1, channels, *sides, device="meta")
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(sides) - 1]
        out = convolve(x, weight, None, **empty.kw_dict)
    else:
        x = torch.empty(1, weight[0].numel(), device="meta")
        out = F.linear(x, weight.flatten(1))
    added: Tensor = empty.h(x, out)
    return added.shape == out.shape


def _is_of_shape(adapter: Any, shape: tuple[int, ...]) -> bool:
    """Whether the product of a LoRA's matrices has as many rows and columns as a weight, as the
    host merges them."""
    up, down, _, mid = adapter.weights[:4]
    if mid is not None:
        return True
    rows, columns = up.flatten(1).shape, down.flatten(1).shape
    size = (shape[0], torch.Size(shape[1:]).numel())
    return bool(rows[1] == columns[0] and (rows[0], columns[1]) == size)


def glora_order(
    adapter: Any, shape: tuple[int, ...]
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], bool] | None:
    """The matrices of one of the host's GLoRA adapters in the order in which an input meets them,
    first those that change what goes into the layer; and whether it is in the older of the two
    forms. None when they do not fit a weight of that shape."""
    a1, a2, b1, b2 = adapter.weights[:4]
    # As the host tells the forms apart, which look the same where the rank is that of a side.
    is_new = a2.shape[0] == a1.shape[1] == b1.shape[1] == b2.shape[0]
    is_old = a1.shape[0] == a2.shape[1] == b1.shape[0] == b2.shape[1]
    is_old = is_old and (not is_new or a2.shape[0] == shape[0] == shape[1])
    order = (a1, a2, b1, b2) if is_old else (a2, a1, b2, b1)
    first, second, third, fourth = (each.flatten(1) for each in order)
    rank, columns = first.shape[0], torch.Size(shape[1:]).numel()
    # The older one changes the cells of a convolution's kernel, not its channels.
    channels = columns if is_old else shape[1]
    fits = (
        first.shape == (rank, channels)
        and second.shape == (channels, rank)
        and third.shape == (rank, columns)
        and fourth.shape == (shape[0], rank)
    )
    return ((first, second, third, fourth), is_old) if fits else None
