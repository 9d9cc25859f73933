"""Training a subject and a style: textual inversion, then LoRA of UNet and text encoders
(MagiCapture, arXiv 2309.06895).

The losses and the schedule are the official code's, its defects mended (see
magic/capture_losses.py). Everything random comes from one seeded generator on the CPU, whose state
is part of every checkpoint: a training that was interrupted ends as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ...magic import capture_losses
from ...magic.capture_sets import CapturePicture, StyleSet, Subject, check_sets
from ..faces.identity import Identity
from ..text.learned_words import Embedding
from .averages import Averages
from .checkpoint import CheckpointFile, TrainingState, name_damage, training_fingerprint
from .denoiser import Denoiser, TextSide
from .draw import (
    Batch,
    Kind,
    PreparedSubject,
    TrainingData,
    preview_prompts,
    training_prompts,
)
from .lora import check_adapter
from .losses import loss_terms
from .memory import training_mode
from .memory_need import MemoryNeed, check_memory
from .metadata import BaseModel, TrainingAccount
from .networks import build_denoiser, build_networks, settings_for
from .pictures import PreparedPicture, prepare_pictures
from .preview import sample_picture
from .report import History, PictureSet, training_report
from .settings import CaptureSettings, Phase

_LORA_DECAY = 1e-3
_LONGEST_GRADIENT = 1.0

OnStep = Callable[[int, float], None]
"""(steps done, loss): called after every step; may raise to cancel."""
OnPreview = Callable[[int, Tensor], None]
"""(steps done, pictures B H W 3)."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training gives.

    lora: the host's LORA_MODEL. embeddings: the new words, those of subjects first. history: the
    total loss of every step. report: how it went, in words. account: what a file of it should say.
    """

    lora: dict[str, Tensor]
    embeddings: tuple[Embedding, ...]
    history: list[float]
    report: str
    account: TrainingAccount


class CaptureTraining:
    """One training run. It owns copies of everything it trains: the MODEL, CLIP and VAE that come
    in stay as they are.

    settings, subject, style: as they came in; the subject with those before it in a chain.
    networks: what computes and learns. data: what steps draw from. side: of the training pictures
    in pixels. need: of memory, where it was checked. step: steps done. history: how they went.
    generator: of everything random. fingerprint: see training_fingerprint.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        subject: Subject,
        style: StyleSet | None,
        identity: Identity | None,
        settings: CaptureSettings,
        on_encoded: Callable[[], None] = lambda: None,
        checks_memory: bool = False,
        on_recognised: Callable[[str], None] = lambda fingerprint: None,
    ):
        """on_recognised: called with its fingerprint, before anything is encoded. on_encoded:
        called after each encoded version of a picture; may raise to cancel.
        checks_memory: whether what it needs is computed before the network is loaded: a ValueError
        when that does not fit."""
        import comfy.model_management as management

        check_sets(subject, style)
        check_adapter(settings.adapter)
        settings = settings_for(model, clip, settings)
        self.settings, self.subject, self.style = settings, subject, style
        self.generator = torch.Generator().manual_seed(settings.seed)
        self._vae = vae
        self._base, self._started = BaseModel.of(model), time.time()
        self.need: MemoryNeed | None = None

        def check(text: TextSide) -> None:
            def build(settings: CaptureSettings) -> Denoiser:
                return build_denoiser(model, settings, torch.Generator(), is_filled=False)

            self.need = check_memory(build, vae, text, subject, style, identity, settings)

        with training_mode():
            self.networks = build_networks(
                model,
                clip,
                vae,
                subject,
                style,
                identity,
                settings,
                self.generator,
                check if checks_memory else lambda _: None,
            )
            device, denoiser = self.networks.device, self.networks.denoiser
            self.side = settings.side or denoiser.native_side
            # Of weights as they are in files: those that the host has loaded may be patched.
            management.unload_all_models()
            self.fingerprint = training_fingerprint(
                self.networks, vae, subject, style, settings, self.side
            )
            on_recognised(self.fingerprint)
            encoding = (vae, denoiser.process_in, self.side, settings.versions)
            faces, mask_mode = self.networks.faces, settings.rules.mask_mode

            def prepare(
                pictures: Sequence[CapturePicture], identity: Identity | None = None
            ) -> list[PreparedPicture]:
                return prepare_pictures(
                    pictures, *encoding, identity, mask_mode, device, self.generator, on_encoded
                )

            with self.networks.identity_on_device():
                of_subjects = [
                    prepare(each.pictures, faces.identity if faces else None)
                    for each in subject.all
                ]
            style_pictures = prepare(style.pictures if style else ())
            subjects = [
                PreparedSubject(
                    pictures,
                    prepare(each.class_pictures),
                    training_prompts(each, style, settings.rules),
                    each.class_weight,
                )
                for each, pictures in zip(subject.all, of_subjects, strict=True)
            ]
            self.data = TrainingData(subjects, style_pictures, self.networks.text)
            # The host does not know how much memory the training takes, so it would not make room
            # by itself.
            management.unload_all_models()
        self.step = 0
        self.history = History()
        self._phase: Phase | None = None
        self._averages: Averages | None = None

    def run(
        self,
        on_step: OnStep,
        checkpoint: CheckpointFile | None = None,
        on_preview: OnPreview | None = None,
        preview_every: int = 0,
        on_taken_up: Callable[[int], None] = lambda step: None,
    ) -> Trained:
        """Trains from where it stands to the end. The state is kept in the checkpoint as often as
        that says and on a cancel, and removed at the end; one of the same training that is there
        already is taken up. on_taken_up: called then, with the steps that it had done."""
        with training_mode():
            if checkpoint is not None:
                if (state := checkpoint.read(self.fingerprint)) is not None:
                    self.take_up(state, checkpoint.path)
                    on_taken_up(self.step)
                checkpoint.try_folder(self._state_size())
            try:
                with self.networks.identity_on_device():
                    while self.step < self.settings.steps:
                        self._timed_step(on_step)
                        if on_preview and preview_every and self._is_due(preview_every):
                            on_preview(self.step, self.sample())
                        if checkpoint is not None and self.step % checkpoint.every == 0:
                            checkpoint.write(self.state())
            except BaseException:
                # What was done until here is worth keeping, and a half-done step has not changed
                # the counters yet.
                if checkpoint is not None and self.step:
                    checkpoint.leave(self.state())
                raise
            if checkpoint is not None:
                checkpoint.remove()
            with self._averaged():
                return Trained(
                    self.networks.lora(),
                    self.networks.text.learned(),
                    self.history.losses,
                    self.report(),
                    self.account(),
                )

    def report(self) -> str:
        """How it went until here, in words."""
        return training_report(
            self.settings,
            [
                PictureSet(each.placeholder, prepared.pictures, len(prepared.class_pictures))
                for each, prepared in zip(self.subject.all, self.data.subjects, strict=True)
            ],
            PictureSet(self.style.placeholder, self.data.style_pictures) if self.style else None,
            self.side,
            str(self.networks.device),
            self.history,
            learns_words=bool(self.networks.text.rows),
            memory=self.need.in_words() if self.need else "",
        )

    def account(self) -> TrainingAccount:
        """What a file of what it has learned until here should say."""
        return TrainingAccount(
            self._base,
            self.subject,
            self.style,
            self.settings,
            learns_words=bool(self.networks.text.rows),
            side=self.side,
            steps=self.step,
            fingerprint=self.fingerprint,
            started=self._started,
        )

    def _timed_step(self, on_step: OnStep) -> None:
        phase, _ = self.settings.phase_at(self.step)
        started = time.perf_counter()
        loss = self.train_step()
        self.history.seconds[phase] += time.perf_counter() - started
        on_step(self.step, loss)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def sample(self) -> Tensor:
        """A picture of the subject, in the style where there is one, as the training stands, 1 H W
        3; several subjects side by side."""
        size = (self.data.style_pictures or self.data.subject_pictures)[0].size
        with self._averaged():
            pictures = [
                sample_picture(self.networks, self._vae, prompt, size, self.settings.seed)
                for prompt in preview_prompts(self.subject, self.style)
            ]
        return torch.cat(pictures, 2)

    def _averaged(self) -> AbstractContextManager[None]:
        """What is learned is its average as long as this is open, where there is one."""
        return self._averages.in_place() if self._averages else contextlib.nullcontext()

    def train_step(self) -> float:
        """One step of the phase it is in. Returns the loss. A step that fails or is cancelled has
        drawn nothing."""
        drawn = self.generator.get_state()
        try:
            return self._train_step()
        except BaseException:
            self.generator.set_state(drawn)
            raise

    def _train_step(self) -> float:
        phase, step = self.settings.phase_at(self.step)
        steps = self.settings.steps_of(phase)
        self.enter(phase)
        factor = capture_losses.linear_decay(step + self.settings.rules.first_decay, steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        terms = loss_terms(self.networks, self.settings, self.draw_batch(), phase, step / steps)
        loss = torch.stack(list(terms.values())).sum()
        self._check_finite(loss, "loss")
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        if phase == Phase.LORA:
            self._clip_gradients()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if phase == Phase.INVERSION:
            self._pull_words()
        if self._averages:
            self._averages.add(step)
        self.step += 1
        self.history.add(phase, loss, terms)
        return self.history.losses[-1]

    def _clip_gradients(self) -> None:
        self._scaler.unscale_(self._optimizer)
        words = self.networks.text.rows
        matrices = [each for adapter in self.networks.adapters for each in adapter.learned]
        norm = nn.utils.clip_grad_norm_(
            [*matrices, *words] if self.settings.rules.clips_words else matrices, _LONGEST_GRADIENT
        )
        # A scaler leaves such a step out; without one it would spoil every weight.
        if not self._scaler.is_enabled():
            self._check_finite(norm, "gradient")

    def _pull_words(self) -> None:
        rate = self._optimizer.param_groups[0]["lr"]
        with torch.no_grad():
            for rows, norm in zip(self.networks.text.rows, self.networks.word_norms, strict=True):
                rows.copy_(capture_losses.pull_norms(rows, rate, norm))

    def _check_finite(self, value: Tensor, name: str) -> None:
        if not value.isfinite():
            raise FloatingPointError(
                f"the {name} is not finite at step {self.step + 1}: lower the rates, or train in"
                f" another precision than {self.settings.precision}"
            )

    def draw_batch(self) -> Batch:
        """What the next step of the phase it is in sees."""
        settings, denoiser = self.settings, self.networks.denoiser
        kinds: list[Kind] = ["subject", "style"] if self.style else ["subject"]
        of_lora = self._phase == Phase.LORA
        if self.style and of_lora and settings.composed:
            kinds.append("composed")
        # The words, which the first phase learns, are in no prompt of these.
        if of_lora and any(each.class_pictures for each in self.data.subjects):
            kinds.append("class")
        has_own = of_lora and self.networks.faces and settings.identity_forward == "own"

        def times(size: tuple[int, int]) -> Tensor:
            return denoiser.draw_times(settings.batch, size, of_lora, self.generator)

        def identity_times() -> Tensor:
            until = settings.identity_until
            return denoiser.draw_early_times(settings.batch, until, self.generator)

        return self.data.draw_batch(
            kinds, settings.batch, times, self.generator, identity_times if has_own else None
        )

    def enter(self, phase: Phase) -> None:
        """Makes trainable what the phase trains, with an optimizer of its own. Nothing where it is
        in that phase already."""
        if phase == self._phase:
            return
        self._phase = phase
        settings, networks = self.settings, self.networks
        for adapter in networks.adapters:
            adapter.strength = float(phase == Phase.LORA)
            for parameter in adapter.learned:
                parameter.requires_grad_(phase == Phase.LORA)
        words = {"params": networks.text.rows}
        groups: list[dict[str, Any]]
        if phase == Phase.INVERSION:
            groups = [{**words, "lr": settings.inversion_rate, "weight_decay": 0.0}]
        else:
            lora = networks.denoiser.adapters.values()
            own = [each for adapter in lora for each in adapter.learned]
            text = [each for adapter in networks.text_adapters for each in adapter.learned]
            groups = [
                {"params": own, "lr": settings.unet_rate, "weight_decay": _LORA_DECAY},
                {"params": text, "lr": settings.text_rate, "weight_decay": _LORA_DECAY},
                {**words, "lr": settings.embedding_rate, "weight_decay": settings.rules.word_decay},
            ]
        for group in groups:
            group["initial_lr"] = group["lr"]
        device = networks.device.type
        self._optimizer = torch.optim.AdamW(
            groups, betas=(0.9, 0.999), fused=device in ("cpu", "cuda")
        )
        self._scaler = GradScaler(device, enabled=settings.precision == "fp16")
        # Each phase has its own: what the one before has begun with is no part of it.
        if settings.ema:
            learned = networks.learned if phase == Phase.LORA else networks.text.rows
            self._averages = Averages(learned, settings.ema)

    def state(self) -> TrainingState:
        """Everything that the rest of the training depends on. For a training that has begun."""
        assert self._phase is not None
        return TrainingState(
            fingerprint=self.fingerprint,
            step=self.step,
            phase=int(self._phase),
            history=self.history.losses,
            terms=self.history.terms,
            seconds=self.history.seconds,
            generator=self.generator.get_state(),
            rows=[rows.detach() for rows in self.networks.text.rows],
            adapters=[
                tuple(each.detach() for each in adapter.learned)
                for adapter in self.networks.adapters
            ],
            optimizer=self._optimizer.state_dict(),
            scaler=self._scaler.state_dict(),
            averages=self._averages.values if self._averages else [],
        )

    def _state_size(self) -> int:
        """About how many bytes the state has: all that is learned, the two moments that the
        optimizer keeps of it, and its average."""
        learned = self.networks.learned
        copies = 4 if self.settings.ema else 3
        return copies * sum(tensor.numel() * tensor.element_size() for tensor in learned)

    def take_up(self, state: TrainingState, path: Path) -> None:
        """Goes on where a state stood. path: of its file, for messages. ValueError when what it
        holds cannot be."""
        with name_damage(path):
            self._check(state)
            self.enter(Phase(state.phase))
            self.step = state.step
            self.history = History(state.history, state.terms, state.seconds)
            self.generator.set_state(state.generator)
            with torch.no_grad():
                for parameter, values in zip(self.networks.learned, state.learned, strict=True):
                    parameter.copy_(values)
                if self._averages:
                    for average, values in zip(self._averages.values, state.averages, strict=True):
                        average.copy_(values)
            self._restore_moments(state.optimizer)
            self._scaler.load_state_dict(state.scaler)

    def _restore_moments(self, optimizer: dict[str, Any]) -> None:
        """The optimizer's memory of past gradients; its rates stay those of the settings."""
        options = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self._optimizer.param_groups
        ]
        self._optimizer.load_state_dict(optimizer)
        for group, values in zip(self._optimizer.param_groups, options, strict=True):
            group.update(values)
        for parameter, memory in self._optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moment = memory[name]
                if moment.shape != parameter.shape or not moment.isfinite().all():
                    raise ValueError("what its optimizer remembers does not fit")

    def _check(self, state: TrainingState) -> None:
        """ValueError for a state that no training of these settings can have been in."""
        steps = self.settings.steps
        if not 0 < state.step <= steps:
            raise ValueError(f"it stands at step {state.step} of {steps}")
        if state.phase != self.settings.phase_at(state.step - 1)[0]:
            raise ValueError(f"step {state.step} is not in phase {state.phase}")
        if len(state.history) != state.step or not _are_numbers(state.history):
            raise ValueError(f"it has no loss for each of its {state.step} steps")
        if len(state.seconds) != len(Phase) or not _are_numbers(state.seconds):
            raise ValueError("it does not say how long the phases took")
        if not all(isinstance(term, list) and _are_numbers(term) for term in state.terms.values()):
            raise ValueError("the terms of its losses are no numbers")
        learned = self.networks.learned
        averaged = learned if state.phase == Phase.LORA else self.networks.text.rows
        expected = [*learned, *(averaged if self.settings.ema else ())]
        values = [*state.learned, *state.averages]
        if [tensor.shape for tensor in expected] != [value.shape for value in values]:
            raise ValueError("what it has learned has other shapes")
        if not all(bool(value.isfinite().all()) for value in values):
            raise ValueError("not all of what it has learned are numbers")


def _are_numbers(values: list[float]) -> bool:
    return all(isinstance(value, float) and math.isfinite(value) for value in values)
