"""Measuring the layout of a prompt in a sampling run. Pictures stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...magic.reference_attention import place_concepts
from ..sampling.backbone import Backbone
from ..sampling.options import ModelOptions
from ..sampling.patch import PatchRun, Predict, SamplingPatch, SamplingStart
from ..sampling.rows import SamplingRows, roles_of, rows_of_prompt, separate_copies
from ..text.prompts import TaggedPrompt
from .observers import LayoutObserver
from .record import LayoutOfRun, LayoutRecord, LayoutStep, layout_step
from .tracker import LayoutTracker

AfterCfg = Callable[[dict[str, Any]], Tensor]
"""The host's post-CFG function: from its arguments to the denoised prediction."""


@dataclass(frozen=True, eq=False)
class LayoutPatch(SamplingPatch["LayoutRun"]):
    """What is measured.

    prompt: with the phrases; backbone: of the model; ca_scale: how much the words that name no
    phrase count (see `semantic_layout`); record: where finished runs go; targets: for each phrase
    the region that the user painted (1 H W in 0..1, or one for each picture), which replaces the
    measured one, or None; observers: who sees the layout while it forms.
    """

    prompt: TaggedPrompt
    backbone: Backbone
    ca_scale: float
    record: LayoutRecord
    targets: tuple[Tensor | None, ...] = ()
    observers: tuple[LayoutObserver, ...] = ()

    @property
    def key(self) -> str:
        return f"magic_layout_{self.prompt.tag}"

    def open_run(self, start: SamplingStart) -> LayoutRun:
        return LayoutRun(self, start)


def check_target_count(target: Tensor | None, start: SamplingStart, whose: str) -> None:
    """ValueError unless a painted region has a mask for each picture of a run, or one for all.
    whose: for the message."""
    pictures = start.shape[0]
    if target is not None and len(target) not in (1, pictures):
        raise ValueError(
            f"{whose} has {len(target)} target regions for a batch of {pictures}: give one for all"
            " pictures, or one for each"
        )


class LayoutRun(PatchRun):
    """The layout of one sampling run: by itself, or as a part of MagicFace's."""

    def __init__(self, patch: LayoutPatch, start: SamplingStart):
        self._patch, self._start = patch, start
        for phrase, target in zip(patch.prompt.phrases, patch.targets, strict=False):
            check_target_count(target, start, f"'{phrase}'")
        self._roles = roles_of(start.guider, patch.prompt.tag)
        self._rows: SamplingRows | None = None
        self.tracker = LayoutTracker(patch.backbone, patch.prompt, patch.ca_scale)
        before = patch.record.run_that_made(start.latent)
        self._before = before if before and start.goes_on_from(before.last_sigma) else None
        self._first_step = self._before.total if self._before else 0
        self.steps: dict[int, LayoutStep] = dict(self._before.steps) if self._before else {}
        steps = self._first_step + start.steps
        runs = (observer.open(steps) for observer in patch.observers)
        self._observers = [run for run in runs if run is not None]

    @property
    def goes_on(self) -> bool:
        """Whether there is a layout from the start, of the run that this one goes on from."""
        return self._before is not None

    @property
    def rows(self) -> SamplingRows:
        """The rows of our prompt. Only in a model call: before it the host has not numbered
        them."""
        if self._rows is None:
            guider, tag = self._start.guider, self._patch.prompt.tag
            separate_copies(guider, tag, self._roles)
            self._rows = rows_of_prompt(guider, tag, self._roles)
            if self._before:
                # The host numbers the prompts of each run anew.
                conds = zip(self._rows.lengths, self._before.latest, strict=False)
                self.tracker.latest = {cond: layout for cond, layout in conds if layout}
        return self._rows

    def predict(
        self,
        executor: Predict,
        x: Tensor,
        timestep: Tensor,
        model_options: ModelOptions,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        sigma = float(timestep.flatten()[0])
        options = self.begin(sigma, model_options, x.shape)
        prediction = executor(x, timestep, options, *args, **kwargs)
        self.end(sigma)
        return prediction

    def begin(
        self,
        sigma: float,
        model_options: ModelOptions,
        shape: Sequence[int],
        after: AfterCfg | None = None,
    ) -> ModelOptions:
        """Options of a model call on latents of `shape` that is measured until its guidance is
        done. after: called then, with the layout of this call."""
        self.expected += bool(self.rows.active(sigma))
        options = self.tracker.begin(self.rows, model_options, shape)

        def after_cfg(arguments: dict[str, Any]) -> Tensor:
            self.end(sigma)
            denoised: Tensor = after(arguments) if after else arguments["denoised"]
            return denoised

        others = options.get("sampler_post_cfg_function", [])
        return {**options, "sampler_post_cfg_function": [after_cfg, *others]}

    def end(self, sigma: float) -> None:
        """The measurement of a model call is over, if it was not yet."""
        if not self.tracker.finish() or (layout := self.tracker.picture) is None:
            return
        self.has_reached = True
        batch, rows, columns = layout.regions.shape
        owners = layout.concepts(self._patch.prompt.spans)
        concepts = place_concepts(owners, self._patch.targets, batch, (rows, columns))
        step = self._first_step + self._start.step_at(sigma)
        self.steps[step] = layout_step(layout, concepts)
        for observer in self._observers:
            observer.show(step, self.steps[step])

    def finish(self, samples: Tensor) -> None:
        run = None
        if self.steps:
            latest = [self.tracker.latest.get(cond) for cond in self.rows.lengths]
            total, last_sigma = self._first_step + self._start.steps, self._start.sigmas[-1]
            run = LayoutOfRun(self.steps, total, last_sigma, latest if last_sigma > 0 else ())
        start, record = self._start, self._patch.record
        record.store(samples, run, start.latent)
        if run is not None and start.is_inversion:
            # What was seen is the picture that the run began with: a LATENT, or what an inversion
            # holds of it. Nothing goes on from there.
            layout = LayoutOfRun(run.steps, run.total)
            latent_format = start.guider.model_patcher.get_model_object("latent_format")
            for picture in (start.latent, latent_format.process_in(start.latent)):
                record.store(picture, layout, start.latent)

    def release(self) -> None:
        for observer in self._observers:
            observer.close(self.steps)
        del self.tracker, self._start, self._rows, self._before
