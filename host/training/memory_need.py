"""How much memory a training needs: a step of it, done with tensors that have shapes and no
numbers.

The network is built once more without its weights, and forward, losses and gradients run through
it; what is alive at each moment is counted. So every family, attention with and without maps, and
checkpointing count as they are, and nothing is known here of any layer. Not counted: what kernels
take for themselves, and what an allocator rounds up.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...magic import capture_losses
from ...magic.capture_sets import CapturePicture, StyleSet, Subject
from ...magic.messages import size_in_words
from ..faces.identity import Identity
from .alike_blocks import rehearsed_once
from .denoiser import Denoiser, TextSide
from .draw import all_prompts, preview_prompts
from .encoded_text import EncodedText
from .losses import around_faces
from .pictures import DifferentiableDecoder, training_size
from .settings import FP8, CaptureSettings
from .text import TrainableText

BuildDenoiser = Callable[[CaptureSettings], Denoiser]
"""The denoiser of some settings with its LoRA, and without the model's weights in it."""

_SURE = 0.9
"""A training is refused when not even this share of what was computed is free: so far computed and
measured may lie apart."""
_MOMENTS = 2
"""What AdamW keeps of each number that it trains."""
_SMALL_RANK = 4
_SIDES = (768, 512)


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on the device.

    weights: of the frozen network, by their dtype. text: of the text encoders that are trained with
    it. prompts: of those that are encoded, where they are on the device, which is in a training on
    a CPU. Both are there already when this is computed. faces: of the identity network and the
    decoder that it looks through. learned: LoRA and words, with what the optimizer keeps of them.
    latents: the encoded pictures. step: what a step has beside that at its peak, gradients
    included. preview: the same of a step of a preview; what decodes it is the host's to fit in.
    """

    weights: Mapping[str, int]
    text: int
    prompts: int
    faces: int
    learned: int
    latents: int
    step: int
    preview: int

    @property
    def total(self) -> int:
        frozen = sum(self.weights.values()) + self.text + self.faces
        return frozen + self.prompts + self.learned + self.latents + max(self.step, self.preview)

    def in_words(self) -> str:
        """How much, and what it consists of, in words."""
        dtypes = " and ".join(self.weights)
        parts = {
            f"frozen weights ({dtypes})": sum(self.weights.values()),
            "text encoders": self.text,
            "encoded prompts": self.prompts,
            "identity loss": self.faces,
            "LoRA and optimizer": self.learned,
            "latents": self.latents,
            "a step": max(self.step, self.preview),
        }
        items = ", ".join(f"{name} {size_in_words(size)}" for name, size in parts.items() if size)
        return f"about {size_in_words(self.total)} ({items})"


def check_memory(
    build: BuildDenoiser,
    vae: Any,
    text: TextSide,
    subject: Subject,
    style: StyleSet | None,
    identity: Identity | None,
    settings: CaptureSettings,
) -> MemoryNeed | None:
    """What a training needs, said in the log; None where it cannot be computed, which is said too.
    To be called when the text is there and before the network is. ValueError, with the setting that
    helps, when it surely does not fit."""
    import comfy.model_management as management

    def need_of(settings: CaptureSettings) -> MemoryNeed:
        return memory_need(build, vae, text, subject, style, identity, settings)

    try:
        need = need_of(settings)
    # An estimate must not stop a training that would run.
    except Exception as error:
        logging.warning("MagiCapture: what memory this training needs is not known (%s)", error)
        return None
    management.unload_all_models()
    management.soft_empty_cache()
    device = management.get_torch_device()
    free = int(management.get_free_memory(device)) + need.text + need.prompts
    room = f"{size_in_words(free)} are free on {device}"
    sentence = f"this training needs {need.in_words()} of memory, {room}"
    if _SURE * need.total > free:
        takes_float8 = not isinstance(text, TrainableText)
        raise ValueError(f"{sentence}. {_advice(need_of, settings, free, takes_float8)}")
    logging.info("MagiCapture: %s", sentence)
    return need


def _advice(
    need_of: Callable[[CaptureSettings], MemoryNeed],
    settings: CaptureSettings,
    free: int,
    takes_float8: bool,
) -> str:
    """The setting with which it fits: one alone, else as few as it takes in this order.
    takes_float8: whether the network can be kept in fp8."""
    side = settings.side or max(_SIDES) + 1
    changes: list[tuple[str, dict[str, Any]]] = []
    if not settings.gradient_checkpointing:
        changes.append(("turn on gradient_checkpointing", {"gradient_checkpointing": True}))
    if settings.batch > 1:
        changes.append(("set batch to 1", {"batch": 1}))
    changes += [
        (f"set resolution to {smaller}", {"side": smaller}) for smaller in _SIDES if smaller < side
    ]
    if settings.precision == "fp32":
        changes.append(("set precision to bf16", {"precision": "bf16"}))
    if settings.rank > _SMALL_RANK:
        changes.append((f"set rank to {_SMALL_RANK}", {"rank": _SMALL_RANK}))
    # Last, since it rounds the weights.
    if takes_float8 and settings.precision != FP8:
        changes.append((f"set precision to {FP8}", {"precision": FP8}))
    for words, change in changes:
        total = need_of(replace(settings, **change)).total
        if total <= free:
            return f"{words[0].upper()}{words[1:]}: it takes about {size_in_words(total)} then"
    trial, names = settings, []
    for words, change in changes:
        trial = replace(trial, **change)
        names.append(words)
        total = need_of(trial).total
        if total <= free:
            together = f"{', '.join(names[:-1])} and {names[-1]}"
            return (
                f"{together[0].upper()}{together[1:]}: it takes about {size_in_words(total)} then"
            )
    return "No setting makes it fit: take a smaller model, or a device with more memory"


def memory_need(
    build: BuildDenoiser,
    vae: Any,
    text: TextSide,
    subject: Subject,
    style: StyleSet | None,
    identity: Identity | None,
    settings: CaptureSettings,
) -> MemoryNeed:
    """By a step on the largest of the pictures with the longest of the prompts, in the phase that
    takes more. Whatever the host raises where a network asks for numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    if not settings.uses_identity:
        identity = None
    shapes = FakeTensorMode(allow_non_fake_inputs=True)
    with shapes:
        denoiser = build(settings)
    decode = None
    if identity is not None:
        decode = DifferentiableDecoder(vae, denoiser.process_out, _device_of(denoiser))
    real = _text_tensors(text) + _tensors_of(identity, decode)
    lora = [each for adapter in denoiser.adapters.values() for each in adapter.learned]
    side = settings.side or denoiser.native_side
    judged_pictures = [picture for each in subject.all for picture in each.pictures]
    judged_pictures += style.pictures if style else ()
    pictures = [*judged_pictures, *(x for each in subject.all for x in each.class_pictures)]
    sizes = [_latent_size(picture, side, denoiser.pixels_per_latent) for picture in pictures]
    size = max(sizes, key=lambda size: size[0] * size[1])
    texts = set(all_prompts(subject, style, settings.rules))
    prompts = [text.prompt(each) for each in texts]
    longest = max(prompts, key=lambda prompt: (prompt.word_count, len(prompt.text)))
    # Here: a prompt that is read for the first time among shapes would be kept without its numbers.
    previews = [text.prompt(""), text.prompt(preview_prompts(subject, style)[0])]
    rehearsal = _Rehearsal(denoiser, text, settings, size, lora)
    look = None
    if identity is not None and decode is not None:
        boxes = [_half_of_box(picture, side, identity.margin) for picture in judged_pictures]
        look = _IdentityLook(identity, decode, max(boxes))
    with shapes:
        frozen = [*_tensors(denoiser.network), *lora]
        there = [*frozen, *map(shapes.from_tensor, real)]
        preview = rehearsal.preview(previews, there)
        step = rehearsal.step(longest, look, there)
    weights: dict[str, int] = {}
    for tensor in _tensors(denoiser.network):
        name = str(tensor.dtype).removeprefix("torch.")
        weights[name] = weights.get(name, 0) + _size(tensor)
    learned = sum(map(_size, [*lora, *text.rows])) + text.lora_size(settings.rank, settings.adapter)
    cells = sum((denoiser.latent_channels + 1) * height * width for height, width in sizes)
    return MemoryNeed(
        weights,
        sum(map(_size, _text_tensors(text))),
        sum(map(_size, text.kept)) if _device_of(denoiser).type == "cpu" else 0,
        sum(map(_size, _tensors_of(identity, decode))),
        (1 + _MOMENTS + (settings.ema > 0)) * learned,
        cells * max(1, settings.versions) * torch.float32.itemsize,
        step,
        preview,
    )


_BY_PLACES = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)
"""What reads or writes a part of a tensor, by a list of masks or numbers of places."""


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, but for those that were there before.
    experts: among how many parts of the network its masks share out tokens, evenly here: of a mask
    without numbers nobody knows how many it takes."""

    def __init__(self, before: Iterable[Tensor], experts: int = 1):
        super().__init__()  # type: ignore[no-untyped-call]
        self._experts = experts
        self._sizes: dict[int, int] = {}
        self.now = self.peak = 0
        for tensor in before:
            self._count(tensor, 0)

    def size_at(self, place: int) -> int:
        """Of a storage by its address; 0 when there is none any more."""
        return self._sizes.get(place, 0)

    def _count(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._sizes:
            return
        self._sizes[place] = storage.nbytes() if size is None else size
        self.now += self._sizes[place]
        weakref.finalize(storage, self._free, place)

    def _free(self, place: int) -> None:
        self.now -= self._sizes.pop(place)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.prim.device.default:
            # Asked more often than all else, and no work.
            return args[0].fake_device
        if function in _BY_PLACES:
            args = (args[0], self._as_places(args[1]), *args[2:])
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        self.peak = max(self.peak, self.now)
        return out

    def _as_places(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Masks among what a tensor is read by as the numbers of the places that they take."""
        out: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype != torch.bool:
                out.append(index)
            else:
                count = -(-index.numel() // self._experts)
                out += [index.new_empty(count, dtype=torch.long) for _ in range(index.ndim)]
        return out


@dataclass(frozen=True, eq=False)
class _IdentityLook:
    """How the identity loss looks. half: half the side of the largest face, in pixels."""

    identity: Identity
    decode: DifferentiableDecoder
    half: float


@dataclass(frozen=True, eq=False)
class _Rehearsal:
    """What is done without numbers. size: of the latent, rows and columns; lora: its matrices."""

    denoiser: Denoiser
    text: TextSide
    settings: CaptureSettings
    size: tuple[int, int]
    lora: Sequence[Tensor]

    def preview(self, prompts: Sequence[Any], before: Iterable[Tensor]) -> int:
        """The peak of a step of sampling, with and without the prompt."""
        condition = self._condition_before(prompts)
        alive = _Alive(before, self._experts)
        with alive, self._once(alive), torch.no_grad():
            noisy = torch.zeros(2, self.denoiser.latent_channels, *self.size, device=self._device)
            times = self._times(2)
            self.denoiser.predict(noisy, times, condition or self._condition(prompts))
        return alive.peak

    def step(self, prompt: Any, look: _IdentityLook | None, before: Iterable[Tensor]) -> int:
        """The peak of a step of training."""
        count, denoiser = self.settings.batch, self.denoiser
        prompts = [prompt] * count
        condition = self._condition_before(prompts)
        of_lora = self.settings.lora_steps > 0
        for adapter in denoiser.adapters.values():
            adapter.strength = float(of_lora)
        learned = [*(self.lora if of_lora else ()), *self.text.rows]
        refocus = of_lora and self.settings.refocus_weight > 0
        alive = _Alive(before, self._experts)
        with alive, self._once(alive, refocus):
            latents = torch.zeros(count, denoiser.latent_channels, *self.size, device=self._device)
            noise, weights = torch.zeros_like(latents), torch.ones_like(latents[:, 0])
            times = self._times(count)
            condition = condition or self._condition(prompts)
            noisy = denoiser.noisy(latents, noise, times)
            output, maps = denoiser.predict(noisy, times, condition, refocus)
            loss = capture_losses.masked_reconstruction(
                output, denoiser.target(latents, noise, times), weights
            ).mean()
            if maps is not None:
                targets = torch.stack([weights, 1 - weights], 1)
                both = torch.ones(count, 2, dtype=torch.bool, device=self._device)
                loss = loss + capture_losses.refocusing(maps, targets, both).mean()
            if look is not None and of_lora:
                if self.settings.identity_forward == "own":
                    output, _ = denoiser.predict(noisy, times, condition)
                loss = loss + self._likeness(look, denoiser.clean(noisy, output, times)).mean()
            torch.autograd.grad(loss, learned, allow_unused=True)
        return alive.peak

    def _once(self, alive: _Alive, is_watched: bool = False) -> AbstractContextManager[None]:
        blocks = self.denoiser.blocks(self.size if is_watched else None)
        return rehearsed_once(blocks, alive)

    @property
    def _experts(self) -> int:
        """Among how many a mixture of experts shares out its tokens; 1 in networks without one."""
        modules = self.denoiser.network.modules()
        lists = (getattr(module, "experts", None) for module in modules)
        return max((len(each) for each in lists if isinstance(each, nn.ModuleList)), default=1)

    def _likeness(self, look: _IdentityLook, clean: Tensor) -> Tensor:
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        cell = self.denoiser.pixels_per_latent
        # Where faces are decides sizes: these are numbers.
        with unset_fake_temporarily():
            height, width = (count * cell for count in self.size)
            boxes = torch.tensor([[width / 2, height / 2, look.half]] * len(clean))
            empty = torch.zeros(len(clean), 1, *self.size)
            parts, boxes = around_faces(empty, boxes, cell)
        height, width = parts.shape[-2:]
        faces = look.decode(clean[..., :height, :width])
        with unset_fake_temporarily():
            crops = capture_losses.face_crops(faces, boxes.to(faces.device), look.identity.side)
        return look.identity.embed_crops(crops).square().sum(1)

    def _condition_before(self, prompts: Sequence[Any]) -> Any:
        """Of prompts that are encoded already: the host looks at their numbers. Else None."""
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        if not isinstance(self.text, EncodedText):
            return None
        with unset_fake_temporarily():
            return self._condition(prompts)

    def _condition(self, prompts: Sequence[Any]) -> Any:
        return self.denoiser.condition(self.text.encode(prompts), prompts, self.size)

    def _times(self, count: int) -> Tensor:
        return self.denoiser.draw_early_times(count, 1000, torch.Generator())

    @property
    def _device(self) -> torch.device:
        return _device_of(self.denoiser)


def _device_of(denoiser: Denoiser) -> torch.device:
    return next(denoiser.network.parameters()).device


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _tensors_of(identity: Identity | None, decode: DifferentiableDecoder | None) -> list[Tensor]:
    return [tensor for part in (identity, decode) if part for tensor in _tensors(part.network)]


def _text_tensors(text: TextSide) -> list[Tensor]:
    """Once each: a table may be held in two places."""
    tensors = {id(tensor): tensor for module in text.modules for tensor in _tensors(module)}
    return list(tensors.values())


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _latent_size(picture: CapturePicture, side: int, cell: int) -> tuple[int, int]:
    height, width = picture.image.shape[:2]
    height, width = training_size(height, width, side)
    return height // cell, width // cell


def _half_of_box(picture: CapturePicture, side: int, margin: float) -> float:
    """Half the side of the crop of its face, in pixels of the training."""
    height, width = picture.image.shape[:2]
    scale = training_size(height, width, side)[0] / height
    return float(capture_losses.face_box(picture.mask, margin)[2]) * scale
