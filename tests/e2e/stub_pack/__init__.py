"""A third pack beside ours: each node does in a few lines what a family of packs does to a MODEL.
The docstrings say which, and what the picture must be."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import comfy.patcher_extension
import comfy.samplers
import torch

OUTER_SAMPLE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE


class ModelNode:
    """What all nodes from MODEL to MODEL share."""

    RETURN_TYPES: tuple[str, ...] = ("MODEL",)
    FUNCTION = "change"
    CATEGORY = "stub"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}


class StubRunTwice(ModelNode):
    """AnimateDiff-Evolved's iterations and image injection: one OUTER_SAMPLE wrapper calls its
    executor twice. As without."""

    def change(self, model: Any) -> tuple[Any]:
        def twice(executor: Callable[..., Any], *args: Any, **options: Any) -> Any:
            executor(*args, **options)
            return executor(*args, **options)

        patched = model.clone()
        patched.add_wrapper_with_key(OUTER_SAMPLE, "stub_twice", twice)
        return (patched,)


class StubDeepcopyOptions(ModelNode):
    """pre_cfg's PAG and zero attention, AutomaticCFG: copy.deepcopy of the model options in a
    pre-CFG function. As without."""

    def change(self, model: Any) -> tuple[Any]:
        def before(args: dict[str, Any]) -> Any:
            copy.deepcopy(args["model_options"])
            return args["conds_out"]

        patched = model.clone()
        patched.set_model_sampler_pre_cfg_function(before)
        return (patched,)


class StubNoCondScale(ModelNode):
    """AutomaticCFG: a sampling function of its own, for the session there, for the run here, whose
    post-CFG arguments have no cond_scale. As without."""

    def change(self, model: Any) -> tuple[Any]:
        def outer(executor: Callable[..., Any], *args: Any, **options: Any) -> Any:
            original = comfy.samplers.sampling_function
            comfy.samplers.sampling_function = self.sampling
            try:
                return executor(*args, **options)
            finally:
                comfy.samplers.sampling_function = original

        patched = model.clone()
        patched.add_wrapper_with_key(OUTER_SAMPLE, "stub_sampling", outer)
        return (patched,)

    @staticmethod
    def sampling(
        model: Any,
        x: Any,
        timestep: Any,
        uncond: Any,
        cond: Any,
        cond_scale: float,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
        **_: Any,
    ) -> Any:
        options = model_options or {}
        positive, negative = comfy.samplers.calc_cond_batch(
            model, [cond, uncond], x, timestep, options
        )
        denoised = negative + (positive - negative) * cond_scale
        for after in options.get("sampler_post_cfg_function", []):
            denoised = after(
                {
                    "denoised": denoised,
                    "cond": cond,
                    "uncond": uncond,
                    "model": model,
                    "uncond_denoised": negative,
                    "cond_denoised": positive,
                    "sigma": timestep,
                    "model_options": options,
                    "input": x,
                }
            )
        return denoised


class ListGuider(comfy.samplers.CFGGuider):
    def set_cfg(self, cfg: Any) -> None:
        self.cfg = cfg

    def predict_noise(
        self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None
    ) -> Any:
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds.get("negative"),
            self.conds.get("positive"),
            self.cfg[0],
            model_options=model_options or {},
            seed=seed,
        )


class StubListCfgGuider:
    """KJNodes' Scheduled CFG Guidance: the guider's cfg is a list of numbers. As with CFGGuider at
    that CFG."""

    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "guide"
    CATEGORY = "stub"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        conditioning = ("CONDITIONING",)
        return {
            "required": {
                "model": ("MODEL",),
                "positive": conditioning,
                "negative": conditioning,
                "cfg": ("FLOAT", {"default": 4.0}),
            }
        }

    def guide(self, model: Any, positive: Any, negative: Any, cfg: float) -> tuple[Any]:
        guider = ListGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg([cfg])
        return (guider,)


class StubLongKeys(ModelNode):
    """StyleAligned, ReferenceOnlySimple and other reference packs: an attn1_patch adds keys. Here
    every key comes twice, which changes nothing. As without."""

    def change(self, model: Any) -> tuple[Any]:
        patched = model.clone()
        patched.set_model_attn1_patch(
            lambda q, k, v, options: (q, torch.cat([k, k], 1), torch.cat([v, v], 1))
        )
        return (patched,)


class StubNoPrecision(ModelNode):
    """Advanced-ControlNet's reference: a rewritten block that gives replace patches no
    attn_precision. As without."""

    def change(self, model: Any) -> tuple[Any]:
        def without(q: Any, k: Any, v: Any, options: dict[str, Any]) -> tuple[Any, Any, Any]:
            options.pop("attn_precision", None)
            return q, k, v

        patched = model.clone()
        patched.set_model_attn1_patch(without)
        return (patched,)


class StubHalves(ModelNode):
    """Packs for little memory: each prompt's rows in a call of their own, which says whose they
    are. As without."""

    says_whose = True

    def change(self, model: Any) -> tuple[Any]:
        def apart(apply: Callable[..., Any], args: dict[str, Any]) -> Any:
            x, conds = args["input"], args["c"]
            count = len(args["cond_or_uncond"])

            def part(value: Any, i: int) -> Any:
                is_rows = torch.is_tensor(value) and len(value) == len(x)
                return value.chunk(count)[i] if is_rows else value

            outputs = []
            for i in range(count):
                own = {name: part(value, i) for name, value in conds.items()}
                options = dict(conds["transformer_options"])
                if self.says_whose:
                    for name in ("cond_or_uncond", "uuids"):
                        options[name] = options[name][i : i + 1]
                own["transformer_options"] = options
                outputs.append(apply(part(x, i), part(args["timestep"], i), **own))
            return torch.cat(outputs)

        patched = model.clone()
        patched.set_model_unet_function_wrapper(apart)
        return (patched,)


class StubSilentHalves(StubHalves):
    """The same, without saying whose rows they are. Refused by name."""

    says_whose = False


class StubOwnCalls(ModelNode):
    """Sampling loops copied from older hosts (AnimateDiff-Evolved's, context windows): they give
    cond_or_uncond, but no uuids. Refused by name."""

    def change(self, model: Any) -> tuple[Any]:
        def call(apply: Callable[..., Any], args: dict[str, Any]) -> Any:
            conds = dict(args["c"])
            options = dict(conds["transformer_options"])
            options.pop("uuids", None)
            return apply(
                args["input"], args["timestep"], **{**conds, "transformer_options": options}
            )

        patched = model.clone()
        patched.set_model_unet_function_wrapper(call)
        return (patched,)


class StubPictureByPicture:
    """Samplers that finish one picture of a batch before the next (samplers for much larger
    batches, seeds in lists). As Euler, for which the order makes no difference."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "sampler"
    CATEGORY = "stub"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def sampler(self) -> tuple[Any]:
        return (comfy.samplers.KSAMPLER(self.sample),)

    @staticmethod
    def sample(
        model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, **_: Any
    ) -> Any:
        pictures = []
        for picture in x.split(1):
            for now, then in itertools.pairwise(sigmas):
                denoised = model(picture, now * picture.new_ones(1), **(extra_args or {}))
                picture = picture + (picture - denoised) / now * (then - now)
            pictures.append(picture)
        return torch.cat(pictures)


class StubRestart(StubPictureByPicture):
    """Restart sampling: goes back up to an earlier sigma, with new noise, and down again. With
    references after the way back too, and with a layout of every step."""

    @staticmethod
    def sample(
        model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, **_: Any
    ) -> Any:
        middle = len(sigmas) // 2
        way = [*range(middle + 1), *range(middle - 1, len(sigmas))]
        generator = torch.Generator().manual_seed(0)
        for now, then in itertools.pairwise(way):
            if then < now:
                more = (sigmas[then] ** 2 - sigmas[now] ** 2) ** 0.5
                x = x + more * torch.randn(x.shape, generator=generator).to(x)
                continue
            denoised = model(x, sigmas[now] * x.new_ones(len(x)), **(extra_args or {}))
            x = x + (x - denoised) / sigmas[now] * (sigmas[then] - sigmas[now])
        return x


class StubCouple(ModelNode):
    """Attention couples: the rows of the positive are repeated inside attn2, and mixed again after
    it. As without."""

    def change(self, model: Any) -> tuple[Any]:
        def repeat(x: Any, kinds: list[int]) -> Any:
            rows = zip(x.chunk(len(kinds)), kinds, strict=True)
            return torch.cat(
                [torch.cat([part, part]) if kind == 0 else part for part, kind in rows]
            )

        def before(q: Any, k: Any, v: Any, options: dict[str, Any]) -> tuple[Any, Any, Any]:
            kinds = options["cond_or_uncond"]
            return repeat(q, kinds), repeat(k, kinds), repeat(v, kinds)

        def after(x: Any, options: dict[str, Any]) -> Any:
            kinds = options["cond_or_uncond"]
            size = x.shape[0] // sum(2 if kind == 0 else 1 for kind in kinds)
            parts = iter(x.split(size))
            return torch.cat(
                [(next(parts) + next(parts)) / 2 if kind == 0 else next(parts) for kind in kinds]
            )

        patched = model.clone()
        patched.set_model_attn2_patch(before)
        patched.set_model_attn2_output_patch(after)
        return (patched,)


class StubOwnOptions(ModelNode):
    """AutomaticCFG's Excellent attention: calculates the conds with the model options of when the
    node ran. With references, or a message that they could not act."""

    def change(self, model: Any) -> tuple[Any]:
        patched = model.clone()
        kept = patched.model_options
        patched.model_options = dict(patched.model_options)

        def calculate(args: dict[str, Any]) -> Any:
            options = {"transformer_options": dict(kept.get("transformer_options", {}))}
            return comfy.samplers.calc_cond_batch(
                args["model"], args["conds"], args["input"], args["sigma"], options
            )

        patched.model_options["sampler_calc_cond_batch_function"] = calculate
        return (patched,)


class StubStepCache(ModelNode):
    """DeepCache, FBCache: a wrapper of the model call that gives what it computed once more in the
    step after, when the shape is the same. The references are not mixed into it."""

    def change(self, model: Any) -> tuple[Any]:
        last: dict[str, Any] = {"time": -1.0, "output": None, "used": True}

        def from_cache(apply: Callable[..., Any], args: dict[str, Any]) -> Any:
            x, time = args["input"], float(args["timestep"].flatten()[0])
            if time > last["time"]:
                last["output"] = None
            output = last["output"]
            fits = output is not None and output.shape == x.shape
            if fits and time < last["time"] and not last["used"]:
                last.update(used=True, time=time)
                return output
            output = apply(x, args["timestep"], **args["c"])
            last.update(time=time, output=output, used=False)
            return output

        patched = model.clone()
        patched.set_model_unet_function_wrapper(from_cache)
        return (patched,)


class StubCfgTwo(ModelNode):
    """AnimateDiff-Evolved's Custom CFG: guides with CFG 2, whatever the sampler says. As with the
    sampler at CFG 2."""

    def change(self, model: Any) -> tuple[Any]:
        patched = model.clone()
        patched.set_model_sampler_cfg_function(
            lambda args: args["uncond"] + 2.0 * (args["cond"] - args["uncond"])
        )
        return (patched,)


class StubTokenizerOptions:
    """smZNodes: while it encodes, it replaces tokenize_with_weights of all that
    vars(clip.tokenizer) holds. As with CLIPTextEncode."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "stub"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP",), "text": ("STRING", {"multiline": True})}}

    def encode(self, clip: Any, text: str) -> tuple[Any]:
        def custom(
            tokenizer: Any, original: Any, text: str, return_word_ids: bool = False, **options: Any
        ) -> Any:
            _ = tokenizer.embedding_key
            return original(text, return_word_ids, **options)

        patched = []
        try:
            for tokenizer in list(vars(clip.tokenizer).values()):
                if hasattr(tokenizer, "tokenize_with_weights"):
                    original = tokenizer.tokenize_with_weights
                    tokenizer.tokenize_with_weights = functools.partial(custom, tokenizer, original)
                    patched.append(tokenizer)
            return (clip.encode_from_tokens_scheduled(clip.tokenize(text)),)
        finally:
            for tokenizer in patched:
                del tokenizer.tokenize_with_weights


NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        StubRunTwice,
        StubDeepcopyOptions,
        StubNoCondScale,
        StubListCfgGuider,
        StubLongKeys,
        StubNoPrecision,
        StubHalves,
        StubSilentHalves,
        StubOwnCalls,
        StubPictureByPicture,
        StubRestart,
        StubCouple,
        StubOwnOptions,
        StubStepCache,
        StubCfgTwo,
        StubTokenizerOptions,
    )
}
