"""A patch of a MODEL that comes with a sampling run and goes with it.

What a patched MODEL carries is an immutable record and one OUTER_SAMPLE wrapper. All that changes
lives in a run, from the start of the sampling to its end, cancel included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import Tensor

from .options import ModelOptions

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Predict = Callable[..., Tensor]
"""The next wrapper around a model call, in the end the host's: (x, timestep, options, ...)."""
_Self = TypeVar("_Self")
_COMPILED = "torch.compile"
"""The host's key of what compiles a model."""
_CALLS_TO_WAIT = 3
"""Step caches leave out a call now and then, never so many from the start."""


@dataclass(frozen=True, eq=False)
class SamplingStart:
    """What is known when a sampling run begins.

    guider: the host's; latent: what is sampled from, B C h w, as a LATENT has it; adds_noise:
    whether noise is added to it; is_masked: whether a part of it is to stay; sigmas: the noise
    levels, one more than there are steps, falling, or rising where a picture is inverted; noise:
    what is added, of the latent's shape; sampler: the host's SAMPLER.
    """

    guider: Any
    latent: Tensor
    adds_noise: bool
    is_masked: bool
    sigmas: tuple[float, ...]
    noise: Tensor
    sampler: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """B C h w."""
        return tuple(self.latent.shape)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def is_inversion(self) -> bool:
        """Whether a picture becomes noise, not noise a picture."""
        return self.sigmas[0] < self.sigmas[-1]

    def goes_on_from(self, sigma: float) -> bool:
        """Whether another run, which ended at `sigma`, may have been the first part of this one."""
        return sigma > 0 and abs(self.sigmas[0] - sigma) <= 1e-3 * sigma

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.shape[-2], self.shape[-1]

    @property
    def model_sampling(self) -> Any:
        """What sigmas mean to the model that is sampled, other nodes' changes included."""
        return self.guider.model_patcher.get_model_object("model_sampling")

    def step_at(self, sigma: float) -> int:
        """The step that a model call at `sigma` belongs to, from 0."""
        steps = sum(1 for level in self.sigmas[:-1] if level >= sigma * (1 - 1e-5))
        return max(0, steps - 1)


class _Shared:
    """What a copy of the host's options shares with them: it holds a guider, or a whole model."""

    def __deepcopy__(self: _Self, memo: dict[int, Any]) -> _Self:
        return self


class PatchRun(_Shared, ABC):
    """One sampling run of a patch.

    is_over: what is left of it changes nothing any more; calls: of the model; expected: calls in
    which a layer should have been reached; has_reached: whether one ever was.
    """

    is_over = False
    calls = 0
    expected = 0
    has_reached = False

    def predict_noise(
        self,
        executor: Predict,
        x: Tensor,
        timestep: Tensor,
        model_options: ModelOptions,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The wrapper around a model call, while the run lasts: somebody may have kept a copy."""
        if self.is_over:
            return executor(x, timestep, model_options, *args, **kwargs)
        self.calls += 1
        prediction = self.predict(executor, x, timestep, model_options, *args, **kwargs)
        if self.expected >= _CALLS_TO_WAIT:
            self.check_reached()
        return prediction

    def check_reached(self) -> None:
        """ValueError when the model has run without us."""
        if not self.calls or (self.expected and not self.has_reached):
            raise ValueError(
                "another node calls the model in a way of its own, past this pack's node: the"
                " picture would be as if it were not there. Remove that node (one that replaces"
                " guidance or caches steps), or this one"
            )

    @abstractmethod
    def predict(
        self,
        executor: Predict,
        x: Tensor,
        timestep: Tensor,
        model_options: ModelOptions,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """A model call: conditional, unconditional and whatever guidance adds."""

    def finish(self, samples: Tensor) -> None:
        """The run has made `samples`. Not called when it was cancelled."""

    def close(self) -> None:
        """The run is over, cancelled or not."""
        self.is_over = True
        self.release()

    @abstractmethod
    def release(self) -> None:
        """Lets go of every tensor."""


Run = TypeVar("Run", bound=PatchRun)


class SamplingPatch(_Shared, ABC, Generic[Run]):
    """What a node puts on a MODEL.

    gives_way: its rule draws rows that other patches of ours draw or watch, and would hide the
    layers from them: whatever the order of the nodes, it is asked after them.
    """

    gives_way: ClassVar[bool] = False

    @property
    @abstractmethod
    def key(self) -> str:
        """The name of the wrapper: another one for each patch."""

    @abstractmethod
    def open_run(self, start: SamplingStart) -> Run:
        """A sampling run begins. ValueError when it cannot be what the patch was made for."""

    def add_to(self, model: ModelPatcher) -> Any:
        """A clone of MODEL with this patch."""
        import comfy.patcher_extension as extension

        clone = model.clone()
        kind = extension.WrappersMP.OUTER_SAMPLE
        clone.add_wrapper_with_key(kind, self.key, self.outer_sample)
        if self.gives_way:
            _put_last_before_others(clone.wrappers[kind])
        return clone

    def outer_sample(
        self,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The wrapper around a whole sampling run."""
        import comfy.patcher_extension as extension

        guider = executor.class_obj
        start = SamplingStart(
            guider=guider,
            latent=latent_image,
            adds_noise=bool(noise.any()),
            is_masked=denoise_mask is not None,
            sigmas=tuple(sigmas.tolist()),
            noise=noise,
            sampler=sampler,
        )
        _refuse_what_cannot_be_seen(guider)
        _refuse_nothing(start.shape)
        _refuse_frames(start.shape)
        run = self.open_run(start)
        try:
            options = guider.model_options.setdefault("transformer_options", {})
            kind = extension.WrappersMP.PREDICT_NOISE
            extension.add_wrapper_with_key(kind, self.key, run.predict_noise, options)
            try:
                # The host's uni_pc writes into the sigmas that it gets, which may be a node's
                # output.
                samples: Tensor = executor(
                    noise, latent_image, sampler, sigmas.clone(), denoise_mask, *args, **kwargs
                )
            finally:
                # Another wrapper may sample again with the same options.
                options["wrappers"][kind].pop(self.key, None)
            if start.steps:
                run.check_reached()
            run.finish(samples)
            return samples
        finally:
            run.close()


def _put_last_before_others(wrappers: dict[str, list[Any]]) -> None:
    """Moves the last key before the first of our patches that do not give way. What is wrapped
    around the model first changes its layers first, and is what the next one finds in them."""
    *before, _ = wrappers
    others = [
        any(isinstance(patch, SamplingPatch) and not patch.gives_way for patch in patches)
        for patches in (
            [getattr(wrapper, "__self__", None) for wrapper in wrappers[key]] for key in before
        )
    ]
    if any(others):
        for key in before[others.index(True) :]:
            wrappers[key] = wrappers.pop(key)


def _refuse_what_cannot_be_seen(guider: Any) -> None:
    """ValueError for nodes of the host's that run the model where our layers cannot follow."""
    import comfy.patcher_extension as extension

    if guider.model_options.get("context_handler") is not None:
        raise ValueError(
            "context windows show the model a part of the batch or picture at a time, and"
            " MagicPortrait's nodes need all of it at once: remove the Context Windows node"
        )
    wrappers = guider.model_patcher.wrappers.get(extension.WrappersMP.APPLY_MODEL, {})
    if _COMPILED in wrappers:
        raise ValueError(
            "a compiled model (TorchCompileModel and the like) goes on with the attention of its"
            " first call, and MagicPortrait's nodes change it in every step: remove the node that"
            " compiles"
        )
    get_additional = getattr(guider.model_patcher, "get_additional_models_with_key", None)
    if get_additional is not None and get_additional("multigpu"):
        raise ValueError(
            "a model on several GPUs draws the positive and the negative prompt at once in threads"
            " of their own, and MagicPortrait's nodes see one call after another: remove the node"
            " that spreads it over GPUs"
        )


def _refuse_nothing(shape: Sequence[int]) -> None:
    if shape[0] == 0:
        raise ValueError(
            "the latent has no pictures: connect one with a batch of one or more, such as Empty"
            " Latent Image"
        )


def _refuse_frames(shape: Sequence[int]) -> None:
    """ValueError for videos: a picture of a model of videos has a time of one."""
    if len(shape) == 5 and shape[2] != 1:
        raise ValueError(
            f"the latent has {shape[2]} frames: MagicPortrait's nodes take pictures only, a latent"
            " with one frame"
        )


def patches_of(model: ModelPatcher) -> list[tuple[list[Any], int, SamplingPatch[Any]]]:
    """Our patches on a MODEL, each with the list of wrappers that holds it and its place there."""
    import comfy.patcher_extension as extension

    wrappers: Sequence[list[Any]] = list(
        model.wrappers.get(extension.WrappersMP.OUTER_SAMPLE, {}).values()
    )
    return [
        (wrappers_of_key, place, patch)
        for wrappers_of_key in wrappers
        for place, wrapper in enumerate(wrappers_of_key)
        if isinstance(patch := getattr(wrapper, "__self__", None), SamplingPatch)
    ]
