"""What a training asks of a kind of model: one protocol for the network that denoises, one for the
text that it is told.

UNets (unet.py, text.py) predict eps or v at timesteps of 1000 and learn two words; transformers
(flow.py, encoded_text.py) predict a velocity at noise levels of 0..1, and their prompts are fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..text.learned_words import Embedding
from .lora import Adapter


class Prompt(Protocol):
    """A prompt as its text side has it."""

    @property
    def text(self) -> str:
        """As it was written."""
        ...

    @property
    def word_count(self) -> int:
        """How many of the placeholders are in it: one, or both."""
        ...


class Condition(Protocol):
    """What a network is told with some samples."""

    def of_rows(self, rows: Sequence[int]) -> Condition:
        """The same for some of the samples."""
        ...


class TextSide(Protocol):
    """Where prompts become what a network is told. `TrainableText` and `EncodedText`."""

    placeholders: tuple[str, ...]

    def prompt(self, text: str) -> Any:
        """A prompt, ValueError when it is none that can be trained on."""
        ...

    def encode(self, prompts: Sequence[Any]) -> Any:
        """For `Denoiser.condition`; with gradients of all that is learned in it."""
        ...

    @property
    def rows(self) -> list[nn.Parameter]:
        """The learned words of each text encoder; none where no words are learned."""
        ...

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """LoRA of the text encoders, by the host's names of the layers."""
        ...

    @property
    def modules(self) -> Sequence[nn.Module]:
        """What computes in `encode`; nothing where prompts are encoded already."""
        ...

    @property
    def kept(self) -> Sequence[Tensor]:
        """What it keeps of prompts that were encoded by the host, on the CPU."""
        ...

    def lora_size(self, rank: int, kind: str) -> int:
        """Numbers in the LoRA of the text encoders at a rank, whether it is there already or not.
        kind: of ADAPTERS."""
        ...

    def learned(self) -> tuple[Embedding, ...]:
        """The words, the subject's first."""
        ...

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Everything that encodings depend on, by names: a training is known by it."""
        ...


class Denoiser(Protocol):
    """A network that can be trained: a copy, frozen but for its LoRA.

    latent_channels, pixels_per_latent: of what it denoises. native_side: of the pictures that it
    was trained on, in pixels. preview_cfg: at which it samples previews. network: the copy.
    adapters: its LoRA, by the host's names of the layers. Times say how much noise there is: a
    number a sample (B), of a kind that only the denoiser knows.
    """

    latent_channels: int
    pixels_per_latent: int
    native_side: int
    preview_cfg: float
    network: nn.Module
    adapters: dict[str, Adapter]

    def blocks(self, watched_size: tuple[int, int] | None = None) -> list[nn.Module]:
        """The network's blocks; without those that maps are read from where a latent of
        `watched_size`, rows and columns, is looked at."""
        ...

    def process_in(self, latents: Tensor) -> Tensor:
        """Latents of the VAE to those of the model, B C h w."""
        ...

    def process_out(self, latents: Tensor) -> Tensor:
        """And back, in the shape that the VAE has."""
        ...

    def draw_times(
        self, count: int, size: tuple[int, int], of_lora: bool, generator: torch.Generator
    ) -> Tensor:
        """As many times as the network learns from. size: rows and columns of the latent; of_lora:
        whether it is the second phase that learns."""
        ...

    def draw_early_times(self, count: int, until: int, generator: torch.Generator) -> Tensor:
        """Times of little noise: below `until` of 1000."""
        ...

    def is_early(self, times: Tensor, until: int) -> Tensor:
        """Whether there is less noise than at `until` of 1000: B, bool."""
        ...

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network is shown. latents, noise: B C h w -> B C h w."""
        ...

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network should give for it, B C h w."""
        ...

    def clean(self, noisy: Tensor, output: Tensor, times: Tensor) -> Tensor:
        """The clean latent that an output speaks of, B C h w."""
        ...

    def condition(self, encoded: Any, prompts: Sequence[Any], size: tuple[int, int]) -> Any:
        """What it is told. encoded: of `TextSide.encode`; size: rows and columns of the latent."""
        ...

    def predict(
        self, noisy: Tensor, times: Tensor, condition: Any, watched: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Its output, B C h w, and, where watched, where each placeholder of the prompts is looked
        at: B M 2 H W in M maps (layers times heads), the first twice where there is but one;
        of a prompt without any anything, None where none has one."""
        ...

    def schedule(self, steps: int) -> list[float]:
        """Times of so many steps of sampling, most noise first."""
        ...

    def renoised(self, noisy: Tensor, clean: Tensor, now: float, after: float | None) -> Tensor:
        """A step of sampling from the time `now` to `after`, None for the end. clean: what the
        noisy latent is taken for."""
        ...
