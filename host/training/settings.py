"""What a training is: its phases, and everything that can be turned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import torch

from .lora import ADAPTERS
from .rules import OFFICIAL, OURS, Rules

FP8 = "fp8"
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    FP8: torch.bfloat16,
}
"""What a precision computes in. FP8 keeps the weights of a transformer's blocks in fp8."""

IDENTITY_FORWARDS = ("shared", "own")
"""What the identity loss looks at: the step's own forward, or a second one at a timestep of its
own."""
OFFICIAL_IDENTITY_UNTIL = 800
WORDS = ("auto", "learned", "trigger words")
"""What the placeholders are of a transformer: vectors that are learned, or words as they are
written. auto: learned where its text encoders are CLIP alone."""


class Phase(IntEnum):
    """INVERSION learns the two words alone, LORA the weights of UNet and text encoders, and the
    words on."""

    INVERSION = 0
    LORA = 1


@dataclass(frozen=True)
class CaptureSettings:
    """All numbers and switches of a training. The defaults are the official code's.

    inversion_steps, lora_steps: of the two phases; 0 leaves a phase out.
    inversion_rate: learning rate of the words in the first phase. This and the other rates are
    those of a phase's first step; they decay linearly.
    unet_rate, text_rate: of the LoRA of the UNet, of the text encoders. embedding_rate: of the
    words in the second phase.
    rank: of every LoRA. batch: samples a step.
    masked: whether a subject counts inside its face masks only, and a style outside; False: all
    pixels count.
    composed: whether prompts with both words are trained in the second phase.
    refocus_weight: of the attention refocusing loss, 0 for none. style_weight: what a sample of the
    style counts in the first half of each phase, a subject's counts 1. identity_weight: of the
    identity loss, 0 for none.
    identity_until: timesteps (of 1000) below which the identity loss looks. identity_forward: one
    of IDENTITY_FORWARDS.
    versions: encoded versions of each picture, at least 1 (see prepare_pictures). side: of a square
    with the area of the training pictures, in pixels; 0 for the model's own.
    precision: a key of DTYPES, what the frozen weights compute in and, but for FP8, are kept in.
    gradient_checkpointing: whether blocks are computed twice to save memory.
    seed: of everything that is drawn.
    is_official: whether the rules that no other setting turns are the official code's.
    lora_blocks: in which blocks of a transformer its LoRA is, as users name them. lora_mlp: whether
    it is in their MLPs too.
    adapter: of ADAPTERS, what is trained in place of a LoRA. ema: how much of the average of what
    is learned a step leaves, in 0..1; 0 for no average: the last step counts.
    words: of WORDS; a UNet's are always learned.
    """

    inversion_steps: int = 1200
    lora_steps: int = 1500
    inversion_rate: float = 2e-3
    unet_rate: float = 4e-4
    text_rate: float = 4e-5
    embedding_rate: float = 1e-4
    rank: int = 4
    batch: int = 1
    masked: bool = True
    composed: bool = True
    refocus_weight: float = 2.5
    style_weight: float = 2.0
    identity_weight: float = 0.5
    identity_until: int = 500
    versions: int = 8
    side: int = 0
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    seed: int = 0
    identity_forward: str = "shared"
    is_official: bool = False
    lora_blocks: str = "all"
    lora_mlp: bool = False
    adapter: str = ADAPTERS[0]
    ema: float = 0.0
    words: str = WORDS[0]

    def as_official(self) -> CaptureSettings:
        """The same steps, rates and weights under the rules of the official code."""
        return replace(
            self,
            is_official=True,
            identity_forward="own",
            identity_until=OFFICIAL_IDENTITY_UNTIL,
        )

    def of_trigger_words(self) -> CaptureSettings:
        """The same for a model of which no words are learned: LoRA alone. ValueError when that
        leaves no steps."""
        if not self.lora_steps:
            raise ValueError(
                "of this transformer no words are learned, LoRA alone: give lora_steps some, or set"
                " words to 'learned'"
            )
        return replace(self, inversion_steps=0)

    @property
    def uses_identity(self) -> bool:
        """Whether an identity network has anything to do."""
        return self.identity_weight > 0 and self.identity_until > 0 and self.lora_steps > 0

    @property
    def rules(self) -> Rules:
        return OFFICIAL if self.is_official else OURS

    @property
    def steps(self) -> int:
        return self.inversion_steps + self.lora_steps

    def steps_of(self, phase: Phase) -> int:
        return self.lora_steps if phase == Phase.LORA else self.inversion_steps

    def phase_at(self, step: int) -> tuple[Phase, int]:
        """The phase in which the training is after `step` steps, and how many of them were in
        it."""
        if step < self.inversion_steps:
            return Phase.INVERSION, step
        return Phase.LORA, step - self.inversion_steps


def precision_for(choice: str) -> str:
    """'auto' becomes what the device does best: bf16 or fp16 on a GPU, fp32 on a CPU."""
    import comfy.model_management as management

    if choice != "auto":
        return choice
    device = management.get_torch_device()
    if device.type == "cpu":
        return "fp32"
    return "bf16" if management.should_use_bf16(device) and torch.cuda.is_available() else "fp16"
