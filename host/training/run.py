"""Training a subject and a style: textual inversion, then LoRA of UNet and text encoders
(MagiCapture, arXiv 2309.06895).

The losses and the schedule are the official code's, its defects mended (see
magic/capture_losses.py). Everything random comes from one seeded generator on the CPU, whose state
is part of every checkpoint: a training that was interrupted ends as one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...magic import capture_losses as losses
from ...magic.capture_sets import StyleSet, Subject
from ..faces.identity import Identity
from ..sampling.backbone import backbone_of
from ..text.placeholders import Embedding
from .lora import LoraLinear, as_lora_model
from .pictures import DifferentiableDecoder, PreparedPicture, prepare_pictures
from .text import Prompt, TrainableText
from .unet import TrainableUNet

_SUBJECT, _STYLE, _COMPOSED = "subject", "style", "composed"
_LORA_TIMESTEPS = 800
"""The official code trains LoRA on the lower four fifths of the noise levels."""
_INVERSION, _LORA = 0, 1
_AROUND_FACE = 3
"""Latent pixels that are decoded around a face."""
PREVIEW_STRENGTHS = (0.6, 0.9)
"""UNet and text encoder, as the paper samples."""


@dataclass(frozen=True)
class CaptureSettings:
    """What a training is. Rates are those of the first step; they decay linearly. identity_until:
    timesteps (of 1000) below which the identity loss looks, where a denoiser's estimate shows a
    face; versions: of each picture (see prepare_pictures); side: in pixels, 0 for the model's
    own."""

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
    mask_temperature: float = 1.0
    versions: int = 8
    side: int = 0
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.inversion_steps + self.lora_steps


@dataclass(frozen=True, eq=False)
class Trained:
    """lora: the host's LORA_MODEL; history: the total loss of every step."""

    lora: dict[str, Tensor]
    embeddings: tuple[Embedding, ...]
    history: list[float]
    report: str


@dataclass(frozen=True, eq=False)
class _Sample:
    kind: str
    picture: PreparedPicture
    version: int
    prompt: Prompt
    identity: Tensor | None


@dataclass(frozen=True, eq=False)
class _Batch:
    """B samples with latents B C h w, noise B C h w, timesteps B."""

    samples: list[_Sample]
    latents: Tensor
    faces: Tensor
    noise: Tensor
    timesteps: Tensor


Report = Callable[[int, float], None]
"""(steps done, loss): called after every step; may raise to cancel."""
Preview = Callable[[int, Tensor], None]
"""(steps done, pictures B H W 3)."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class CaptureTraining:
    """One training run. It owns copies of everything it trains: the MODEL, CLIP and VAE that come
    in stay as they are."""

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        subject: Subject,
        style: StyleSet,
        identity: Identity | None,
        settings: CaptureSettings,
        encoded: Callable[[], None] = lambda: None,
    ):
        import comfy.model_management as management

        if subject.placeholder == style.placeholder:
            raise ValueError(
                f"subject and style have the same placeholder '{subject.placeholder}': give each"
                " its own"
            )
        self.settings, self.subject, self.style = settings, subject, style
        self.device = management.get_torch_device()
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._side = settings.side or backbone_of(model).native_side
        self._vae, self._process_out = vae, model.model.process_latent_out
        with training_mode():
            self.text = TrainableText(clip, [subject.placeholder, style.placeholder], self.device)
            self._check_prompts()
            self.text.check_against(
                clip, style.prompt(0, subject.class_word).replace(style.placeholder, "")
            )
            self.unet = TrainableUNet(
                model, self.device, DTYPES[settings.precision], settings.gradient_checkpointing
            )
            self.norms = self.text.typical_norms([subject.class_word, style.class_word])
            self.text.initialise([subject.class_word, ""], self.norms, self._generator)
            self.unet.add_lora(settings.rank, self._generator)
            for encoder in self.text.encoders.values():
                encoder.add_lora(settings.rank, self._generator)
            self.identity = (
                identity
                if identity and settings.identity_weight > 0 and settings.lora_steps
                else None
            )
            self._decode = (
                DifferentiableDecoder(vae, self._process_out, self.device)
                if self.identity
                else None
            )
            prepare = [vae, model.model.process_latent_in, self._side, settings.versions]
            with self._identity_at_hand():
                self._subjects = prepare_pictures(
                    subject.pictures, *prepare, self.identity, self.device, self._generator, encoded
                )
            self._styles = prepare_pictures(
                style.pictures, *prepare, None, self.device, self._generator, encoded
            )
            # The host does not know how much memory the training takes, so it would not make room
            # by itself.
            management.unload_all_models()
            self.step = 0
            self.history: list[float] = []
            self._terms: dict[str, list[float]] = {}
            self._seconds = [0.0, 0.0]
            self._phase = -1
            self.fingerprint = self._fingerprint(identity)

    def _identity_at_hand(self) -> contextlib.AbstractContextManager[None]:
        return self.identity.on(self.device) if self.identity else contextlib.nullcontext()

    # ---- the run ----

    def run(
        self,
        report: Report,
        checkpoint: Path | None = None,
        every: int = 0,
        preview: Preview | None = None,
        previews: int = 0,
    ) -> Trained:
        """Trains from where it stands to the end. With `every`, the state is kept in `checkpoint`
        at every so many steps and on a cancel, and removed at the end; a state of the same training
        that is there already is taken up."""
        with training_mode():
            if every and checkpoint is not None and checkpoint.exists():
                self.load(checkpoint)
            try:
                with self._identity_at_hand():
                    self._train(report, checkpoint, every, preview, previews)
            except BaseException:
                # What was done until here is worth keeping, and a half-done step has not changed
                # the counters yet.
                if every and checkpoint is not None and self.step:
                    self.save(checkpoint)
                raise
            if every and checkpoint is not None:
                checkpoint.unlink(missing_ok=True)
            return Trained(self.lora(), self.text.learned(), self.history, self.summary())

    def _train(
        self,
        report: Report,
        checkpoint: Path | None,
        every: int,
        preview: Preview | None,
        previews: int,
    ) -> None:
        while self.step < self.settings.steps:
            started = time.perf_counter()
            loss = self.train_step()
            self._seconds[self._phase] += time.perf_counter() - started
            report(self.step, loss)
            if (
                preview
                and previews
                and (self.step % previews == 0 or self.step == self.settings.steps)
            ):
                preview(self.step, self.sample())
            if every and checkpoint is not None and self.step % every == 0:
                self.save(checkpoint)

    def train_step(self) -> float:
        """One step of the phase it is in. Returns the loss. A step that fails or is cancelled has
        drawn nothing."""
        drawn = self._generator.get_state()
        try:
            return self._train_step()
        except BaseException:
            self._generator.set_state(drawn)
            raise

    def _train_step(self) -> float:
        self._enter_phase()
        step, steps = self._phase_step()
        factor = losses.linear_decay(step, steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        terms = self._losses(self._draw(), step / steps)
        loss = torch.stack(list(terms.values())).sum()
        self._check_finite(loss, "loss")
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        if self._phase == _LORA:
            self._scaler.unscale_(self._optimizer)
            norm = nn.utils.clip_grad_norm_(
                [
                    parameter
                    for adapter in self._adapters()
                    for parameter in (adapter.up, adapter.down)
                ],
                1.0,
            )
            # A scaler leaves such a step out; without one it would spoil every weight.
            if not self._scaler.is_enabled():
                self._check_finite(norm, "gradient")
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._phase == _INVERSION:
            with torch.no_grad():
                for rows, norm in zip(self.text.rows, self.norms, strict=True):
                    rows.copy_(losses.pull_norms(rows, self._optimizer.param_groups[0]["lr"], norm))
        self.step += 1
        self.history.append(loss.item())
        for name, term in terms.items():
            self._terms.setdefault(f"{self._phase} {name}", []).append(term.item())
        return self.history[-1]

    def _check_finite(self, value: Tensor, name: str) -> None:
        if not value.isfinite():
            advice = (
                f"lower the rates, or train in another precision than {self.settings.precision}"
            )
            raise FloatingPointError(f"the {name} is not finite at step {self.step + 1}: {advice}")

    def lora(self) -> dict[str, Tensor]:
        adapters = dict(self.unet.adapters)
        for encoder in self.text.encoders.values():
            adapters.update(encoder.adapters)
        return as_lora_model(adapters)

    # ---- phases ----

    def _phase_step(self) -> tuple[int, int]:
        """Steps done in this phase, and its steps."""
        first = self.settings.inversion_steps
        return (
            (self.step, first)
            if self.step < first
            else (self.step - first, self.settings.lora_steps)
        )

    def _enter_phase(self) -> None:
        phase = _INVERSION if self.step < self.settings.inversion_steps else _LORA
        if phase == self._phase:
            return
        self._phase = phase
        settings = self.settings
        for adapter in self._adapters():
            adapter.strength = float(phase == _LORA)
            adapter.requires_grad_(phase == _LORA)
        if phase == _INVERSION:
            groups = [
                {"params": self.text.rows, "lr": settings.inversion_rate, "weight_decay": 0.0}
            ]
        else:
            text = [
                p
                for encoder in self.text.encoders.values()
                for adapter in encoder.adapters.values()
                for p in adapter.parameters()
            ]
            unet = [p for adapter in self.unet.adapters.values() for p in adapter.parameters()]
            groups = [
                {"params": unet, "lr": settings.unet_rate, "weight_decay": 1e-3},
                {"params": text, "lr": settings.text_rate, "weight_decay": 1e-3},
                {"params": self.text.rows, "lr": settings.embedding_rate, "weight_decay": 0.0},
            ]
        for group in groups:
            group["initial_lr"] = group["lr"]
        self._optimizer = torch.optim.AdamW(
            groups, betas=(0.9, 0.999), fused=self.device.type in ("cpu", "cuda")
        )
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")

    def _adapters(self) -> list[LoraLinear]:
        return [
            *self.unet.adapters.values(),
            *(a for encoder in self.text.encoders.values() for a in encoder.adapters.values()),
        ]

    # ---- what a step sees ----

    def _draw(self) -> _Batch:
        kinds = [_SUBJECT, _STYLE]
        if self._phase == _LORA and self.settings.composed:
            kinds.append(_COMPOSED)
        samples: list[_Sample] = []
        for _ in range(self.settings.batch):
            samples.append(self._draw_sample(kinds, samples[0].picture.size if samples else None))
        latents = torch.stack([sample.picture.latents[sample.version] for sample in samples])
        highest = _LORA_TIMESTEPS if self._phase == _LORA else len(self.unet.alpha_bars)
        timesteps = torch.randint(highest, (len(samples),), generator=self._generator)
        noise = torch.randn(latents.shape, generator=self._generator).to(self.device)
        return _Batch(
            samples,
            latents,
            torch.stack([sample.picture.faces[sample.version] for sample in samples]),
            noise,
            timesteps.to(self.device),
        )

    def _draw_sample(self, kinds: Sequence[str], size: tuple[int, int] | None) -> _Sample:
        """A batch holds latents of one size: the first sample's."""

        def fitting(pictures: Sequence[PreparedPicture]) -> list[PreparedPicture]:
            return [picture for picture in pictures if size in (None, picture.size)]

        choices = {
            kind: fitting(self._subjects if kind == _SUBJECT else self._styles) for kind in kinds
        }
        kind = self._choice([kind for kind in kinds if choices[kind]])
        picture = self._choice(choices[kind])
        version = self._choice(range(len(picture.latents)))
        templates = self.subject.templates if kind == _SUBJECT else self.style.templates
        template = self._choice(range(len(templates)))
        identity = None
        if kind == _SUBJECT:
            text = self.subject.prompt(template)
            identity = picture.identities[version] if picture.identities is not None else None
        elif kind == _STYLE:
            text = self.style.prompt(template)
        else:
            text = self.style.prompt(template, self.subject.person)
            other = self._choice(self._subjects)
            identity = (
                other.identities[version % len(other.identities)]
                if other.identities is not None
                else None
            )
        return _Sample(kind, picture, version, self.text.prompt(text), identity)

    def _choice(self, options: Sequence[Any]) -> Any:
        return options[int(torch.randint(len(options), (), generator=self._generator))]

    # ---- losses ----

    def _losses(self, batch: _Batch, progress: float) -> dict[str, Tensor]:
        """The weighted terms, each the mean over the batch."""
        settings, size = self.settings, tuple(batch.latents.shape[-2:])
        subject = torch.tensor(
            [sample.kind == _SUBJECT for sample in batch.samples], device=self.device
        )
        composed = torch.tensor(
            [sample.kind == _COMPOSED for sample in batch.samples], device=self.device
        )
        regions = torch.where(subject[:, None, None], batch.faces, 1 - batch.faces)
        weights = losses.loss_weights(
            regions, size, settings.mask_temperature if self._phase == _LORA else 1.0
        )
        context, pooled = self.text.encode([sample.prompt for sample in batch.samples])
        vector = self.unet.size_condition(pooled, size[0] * 8, size[1] * 8)
        refocus = self._phase == _LORA and settings.refocus_weight > 0
        columns, present = self._columns(batch.samples)
        noisy = self._noisy(batch, batch.timesteps)
        output, maps = self.unet.predict(
            noisy, batch.timesteps, context, vector, columns if refocus else None
        )

        target = self._target(batch)
        reconstruction = losses.masked_reconstruction(
            output, target, weights if settings.masked else torch.ones_like(weights)
        )
        if progress < 0.5:
            reconstruction = torch.where(
                subject, reconstruction, reconstruction * settings.style_weight
            )
        terms = {"reconstruction": reconstruction.mean()}
        if refocus and maps is not None:
            targets = losses.refocusing_targets(weights, composed)
            terms["refocusing"] = (
                settings.refocus_weight * losses.refocusing(maps, targets, present).mean()
            )
        if self._phase == _LORA and self.identity:
            early = (batch.timesteps < settings.identity_until).tolist()
            shown = [
                i
                for i, sample in enumerate(batch.samples)
                if sample.identity is not None and early[i]
            ]
            if shown:
                terms["identity"] = (
                    settings.identity_weight
                    * self._identity(batch, shown, noisy, output).sum()
                    / len(batch.samples)
                )
        return terms

    def _columns(self, samples: Sequence[_Sample]) -> tuple[Tensor, Tensor]:
        """For each sample the positions of its learned words in the prompt (B 2), and which of the
        two it has."""
        rows = [
            [position for position in sample.prompt.positions if position >= 0]
            for sample in samples
        ]
        columns = torch.tensor([(row * 2)[:2] for row in rows], device=self.device)
        return columns, torch.tensor([[True, len(row) > 1] for row in rows], device=self.device)

    def _noisy(self, batch: _Batch, timesteps: Tensor) -> Tensor:
        alpha_bar = self.unet.alpha_bars[timesteps].reshape(-1, 1, 1, 1)
        return alpha_bar.sqrt() * batch.latents + (1 - alpha_bar).sqrt() * batch.noise

    def _target(self, batch: _Batch) -> Tensor:
        if not self.unet.v_prediction:
            return batch.noise
        alpha_bar = self.unet.alpha_bars[batch.timesteps].reshape(-1, 1, 1, 1)
        return alpha_bar.sqrt() * batch.noise - (1 - alpha_bar).sqrt() * batch.latents

    def _identity(self, batch: _Batch, shown: list[int], noisy: Tensor, output: Tensor) -> Tensor:
        """Identity distances of the samples `shown`, from what the reconstruction's forward has
        predicted.

        The official code runs the UNet a second time, at timesteps up to 800. From about 600 on the
        estimate shows nobody, and its gradient is multiplied by the noise-to-signal ratio: there
        the loss teaches patterns that please the face network.
        """
        assert self.identity is not None and self._decode is not None
        alpha_bars = self.unet.alpha_bars[batch.timesteps[shown]]
        clean = losses.clean_estimate(
            noisy[shown], output[shown], alpha_bars, self.unet.v_prediction
        )
        samples = [batch.samples[i] for i in shown]
        boxes = torch.stack([self._box(sample) for sample in samples])
        faces, boxes = _around_faces(clean, boxes)
        crops = losses.face_crops(self._decode(faces), boxes, self.identity.side)
        references = torch.stack(
            [sample.identity for sample in samples if sample.identity is not None]
        )
        return losses.identity(self.identity.embed_crops(crops), references)

    def _box(self, sample: _Sample) -> Tensor:
        """The face of the picture that is being denoised, as wide as the identity network wants
        it."""
        box = sample.picture.boxes[sample.version]
        margin = self.identity.margin if self.identity and sample.kind == _COMPOSED else 1.0
        return box * torch.tensor([1.0, 1.0, margin], device=box.device)

    # ---- previews ----

    @torch.no_grad()
    def sample(self, steps: int = 20, cfg: float = 5.0) -> Tensor:
        """A picture of the subject in the style as the training stands (DDIM), B H W 3. Changes
        nothing that the training depends on."""
        text = [self.style.prompt(0, self.subject.person)]
        before = [adapter.strength for adapter in self._adapters()]
        try:
            unet, text_encoders = PREVIEW_STRENGTHS
            for adapters, strength in (
                (self.unet.adapters, unet),
                *((e.adapters, text_encoders) for e in self.text.encoders.values()),
            ):
                for adapter in adapters.values():
                    adapter.strength *= strength
            context, pooled = self.text.encode(
                [self.text.prompt(""), *(self.text.prompt(prompt) for prompt in text)]
            )
            height, width = self._styles[0].size
            vector = self.unet.size_condition(pooled, height * 8, width * 8)
            latent = torch.randn(
                1, 4, height, width, generator=torch.Generator().manual_seed(self.settings.seed)
            ).to(self.device)
            schedule = (
                torch.linspace(len(self.unet.alpha_bars) - 1, 0, steps).round().long().tolist()
            )
            for now, after in zip(schedule, [*schedule[1:], -1], strict=True):
                timesteps = torch.full((2,), now, device=self.device)
                output, _ = self.unet.predict(
                    latent.expand(2, -1, -1, -1), timesteps, context, vector
                )
                guided = output[:1] + cfg * (output[1:] - output[:1])
                alpha_bar = self.unet.alpha_bars[now : now + 1]
                clean = losses.clean_estimate(latent, guided, alpha_bar, self.unet.v_prediction)
                noise = (latent - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
                following = (
                    self.unet.alpha_bars[after]
                    if after >= 0
                    else torch.ones((), device=self.device)
                )
                latent = following.sqrt() * clean + (1 - following).sqrt() * noise
        finally:
            for adapter, strength in zip(self._adapters(), before, strict=True):
                adapter.strength = strength
        with torch.inference_mode():
            return self._vae.decode(self._process_out(latent)).clone().cpu()

    # ---- checkpoints and report ----

    def _fingerprint(self, identity: Identity | None) -> str:
        """Says whether a checkpoint belongs to this very training."""
        digest = hashlib.sha256()
        sets = (self.subject, self.style)
        described = [asdict(self.settings), self._side, identity.name if identity else ""]
        described += [
            (part.placeholder, part.class_word, part.templates, [p.name for p in part.pictures])
            for part in sets
        ]
        digest.update(repr(described).encode())
        with torch.no_grad():
            # Of pictures and VAE, not of latents: a GPU may encode the last bit otherwise in each
            # run.
            tensors = [
                tensor
                for picture in (*self.subject.pictures, *self.style.pictures)
                for tensor in (picture.image, picture.mask)
            ]
            tensors += [
                *self._vae.get_sd().values(),
                *self.unet.unet.state_dict().values(),
                *(t for e in self.text.encoders.values() for t in e.model.state_dict().values()),
            ]
            tensors += self.text.rows
            sums = [
                (
                    tuple(tensor.shape),
                    tensor.double().sum().item(),
                    tensor.double().abs().sum().item(),
                )
                for tensor in tensors
            ]
        digest.update(repr(sums).encode())
        return digest.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes everything that the rest of the training depends on. A crash while writing leaves
        the previous file."""
        state = {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "history": self.history,
            "terms": self._terms,
            "seconds": self._seconds,
            "generator": self._generator.get_state(),
            "rows": [rows.detach() for rows in self.text.rows],
            "adapters": [
                (adapter.up.detach(), adapter.down.detach()) for adapter in self._adapters()
            ],
            "phase": self._phase,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        """ValueError when the checkpoint is another training's."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"checkpoint {path} cannot be read ({error}): remove it to start anew"
            ) from error
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"checkpoint {path.name} belongs to a training with other pictures, settings or"
                " models: remove it to start anew"
            )
        self.step = self.settings.inversion_steps if state["phase"] == _LORA else 0
        self._enter_phase()
        self.step, self.history, self._terms, self._seconds = (
            state["step"],
            state["history"],
            state["terms"],
            state["seconds"],
        )
        self._generator.set_state(state["generator"])
        with torch.no_grad():
            for rows, saved in zip(self.text.rows, state["rows"], strict=True):
                rows.copy_(saved)
            for adapter, (up, down) in zip(self._adapters(), state["adapters"], strict=True):
                adapter.up.copy_(up)
                adapter.down.copy_(down)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def summary(self) -> str:
        """What was trained, how long it took, and how the terms of the loss went, in words."""
        settings = self.settings
        lines = [
            f"subject '{self.subject.placeholder}' ({len(self._subjects)} pictures), style"
            f" '{self.style.placeholder}' ({len(self._styles)} pictures), {self._side} px,"
            f" {settings.precision} on {self.device}"
        ]
        phases = (("textual inversion", settings.inversion_steps), ("LoRA", settings.lora_steps))
        for phase, (name, steps) in enumerate(phases):
            if not steps:
                continue
            lines.append(f"{name}: {steps} steps, {self._seconds[phase] / steps:.3f} s a step")
            for term, values in self._terms.items():
                if term.startswith(str(phase)):
                    tenth = max(1, len(values) // 10)
                    first, last = (sum(part) / tenth for part in (values[:tenth], values[-tenth:]))
                    lines.append(f"  {term[2:]}: {first:.4f} at first, {last:.4f} at last")
        return "\n".join(lines)

    def _check_prompts(self) -> None:
        """Every prompt that may come up is cut into tokens now, so that a bad template is an error
        before the training."""
        prompts = [self.subject.prompt(i) for i in range(len(self.subject.templates))]
        for i in range(len(self.style.templates)):
            prompts += [self.style.prompt(i), self.style.prompt(i, self.subject.person)]
        for prompt in prompts:
            self.text.prompt(prompt)


def _around_faces(latents: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The part of each latent that shows the face, one size for all, and the boxes (see face_box)
    in it.

    Decoding is the dear part of the identity loss, and a decoder sees hardly further than the few
    latent pixels that are left around.
    """
    limits = latents.shape[-2:]
    side = math.ceil(boxes[:, 2].max().item() / 4) + 2 * _AROUND_FACE
    height, width = min(side, limits[0]), min(side, limits[1])
    parts, corners = [], []
    for latent, (x, y, _) in zip(latents, (boxes / 8).tolist(), strict=True):
        top = min(max(0, round(y - height / 2)), limits[0] - height)
        left = min(max(0, round(x - width / 2)), limits[1] - width)
        parts.append(latent[:, top : top + height, left : left + width])
        corners.append([8.0 * left, 8.0 * top, 0.0])
    return torch.stack(parts), boxes - torch.tensor(corners, device=boxes.device)


@contextlib.contextmanager
def training_mode() -> Iterator[None]:
    """Gradients, although the host runs nodes under inference_mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
