"""References that an edit model is given in its sequence, each in its own region. No reference pass
is needed: columns of the model's own attention are weighed, dropped, and left to regions."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...magic.blocks import Block
from ...magic.concepts import Cells, Concept, Level
from ...magic.messages import shown
from ...magic.pictures import check_painted
from ...magic.sequence_references import (
    Columns,
    EditReference,
    Outside,
    SequenceReference,
    centred,
    seen_columns,
)
from ..layout.patch import LayoutPatch, LayoutRun, check_target_count
from ..sampling.backbone import JointTransformer, LayerView
from ..sampling.options import ModelOptions
from ..sampling.patch import PatchRun, Predict, SamplingPatch, SamplingStart
from ..sampling.range import ALL_OF_SAMPLING, SamplingRange, sigma_at
from ..sampling.references import rescale
from ..sampling.rows import SamplingRows
from .regions import ConceptRegions, check_whole, stretches

GIVEN_LEVELS: Mapping[Level, float] = {
    "subtle": -math.log(2),
    "normal": 0.0,
    "strong": math.log(2),
}
"""What the strengths in words add to the logits: half as much as trained, as much, twice."""
_SHOWN_SIDE = 384
"""Of the square whose area a picture has that a text encoder is shown."""


@dataclass(frozen=True, eq=False)
class EditRegionsPatch(SamplingPatch["EditRegionsRun"]):
    """Everything a run needs.

    layout: the prompt and the phrases of the concepts that have one; backbone: of the model;
    references: in the order of the sequence; targets: for each concept the region that the user
    painted, or None: concepts with a phrase come first, in the order of the layout's; blocks: where
    the rule acts; range: when; inject_at: the share of sampling from which each region sees its own
    references only (RBA), before it every place sees all (RSA); is_isolated: references do not see
    each other; outside: what places of no region see in RBA.
    """

    layout: LayoutPatch
    backbone: JointTransformer
    references: tuple[SequenceReference, ...]
    targets: tuple[Tensor | None, ...]
    blocks: tuple[Block, ...]
    range: SamplingRange = ALL_OF_SAMPLING
    inject_at: float = 0.0
    is_isolated: bool = False
    outside: Outside = "all"

    @property
    def key(self) -> str:
        return f"magic_edit_{self.layout.prompt.tag}"

    @property
    def is_weighed(self) -> bool:
        """Whether a reference counts in another way than the model was trained to, whatever the
        regions are."""
        is_apart = self.is_isolated and len(self.references) > 1
        return is_apart or not all(reference.is_plain for reference in self.references)

    @property
    def is_painted(self) -> bool:
        """Whether every region is known from the start."""
        return all(target is not None for target in self.targets)

    def open_run(self, start: SamplingStart) -> EditRegionsRun:
        return EditRegionsRun(self, start)


class EditRegionsRun(PatchRun):
    """One sampling run with references in the sequence."""

    def __init__(self, patch: EditRegionsPatch, start: SamplingStart):
        self._patch, self._start = patch, start
        # The layout looks at those of phrases.
        for target in patch.targets[len(patch.layout.targets) :]:
            check_target_count(target, start, "a reference")
        self._layout = LayoutRun(patch.layout, start)
        self._range = patch.range.sigmas(start.model_sampling)
        self._inject = sigma_at(start.model_sampling, patch.inject_at) if patch.targets else 0.0
        self._report()

    def _report(self) -> None:
        """Says in the log what will happen in which step."""
        sigmas, patch = self._start.sigmas[:-1], self._patch
        acting = [i for i, sigma in enumerate(sigmas, 1) if self._range.covers(sigma)]
        is_known = patch.is_painted or self._layout.goes_on
        by_region = [i for i in acting if sigmas[i - 1] < self._inject and (i > 1 or is_known)]
        logging.info(
            "Edit Regions: %d references in the sequence, in %d of %d layers; steps %s of %d see"
            " all of them, steps %s their region's own%s",
            len(patch.references),
            len(patch.blocks),
            len(patch.backbone.layers),
            stretches([i for i in acting if i not in by_region]),
            len(sigmas),
            stretches(by_region),
            "; references do not see each other" if patch.is_isolated else "",
        )

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
        rows, options, patch = self._layout.rows, model_options, self._patch
        is_by_region = sigma < self._inject
        is_acting = self._range.covers(sigma) and (is_by_region or patch.is_weighed)
        # Our prompt may be limited to other steps.
        is_acting = is_acting and bool(rows.active(sigma))
        rule = None
        if is_acting:
            self.expected += 1
            rule = _EditRule(patch, self._regions(rows, x.shape), rows, is_by_region)
            options = patch.backbone.with_rule(
                options, patch.blocks, rows.ours, x.shape[0], rule.attend, patch.is_isolated
            )
        is_measured = self._is_measured(sigma)
        if is_measured:
            options = self._layout.begin(sigma, options, x.shape)
        prediction = executor(x, timestep, options, *args, **kwargs)
        if is_measured:
            self._layout.end(sigma)
        if rule is not None:
            self.has_reached |= rule.has_acted
        return prediction

    def _regions(self, rows: SamplingRows, shape: Sequence[int]) -> ConceptRegions:
        # Finishing this call's measurement replaces the layouts in mid-call.
        layouts = {cond: self._layout.tracker.layout_of(cond) for cond in rows.ours}
        return ConceptRegions(
            rows=rows,
            layouts=layouts,
            spans=self._patch.layout.prompt.spans,
            targets=self._patch.targets,
            batch=shape[0],
            latent_size=(shape[-2], shape[-1]),
        )

    def _is_measured(self, sigma: float) -> bool:
        """Regions need the layout of the call before theirs, and the user the last one."""
        if not self._patch.layout.prompt.phrases:
            return False
        step, last = self._start.step_at(sigma), self._start.steps - 1
        following = self._start.sigmas[min(step + 1, self._start.steps)]
        return (following < self._inject and not self._patch.is_painted) or step >= last

    def finish(self, samples: Tensor) -> None:
        self._layout.finish(samples)

    def release(self) -> None:
        self._layout.close()
        del self._start


class _EditRule:
    """The rule of one model call. is_by_region: whether regions matter (RBA); has_acted: whether a
    layer was drawn by it."""

    def __init__(
        self,
        patch: EditRegionsPatch,
        regions: ConceptRegions,
        rows: SamplingRows,
        is_by_region: bool,
    ):
        self._patch, self._regions, self._rows = patch, regions, rows
        self._is_by_region = is_by_region
        self._columns: dict[tuple[Any, int | None, bool], Columns] = {}
        self.has_acted = False

    def attend(self, view: LayerView) -> Tensor:
        """The `Rule` of the chosen layers."""
        self.has_acted = True
        assert view.attend_to is not None
        check_whole(view, self._rows, self._regions.latent_size, self._patch.backbone.pixels)
        groups = self._regions.groups(view) if self._is_by_region else None
        if groups is None:
            columns = self._columns_for(view, None, False)
            return view.attend_to(view.q, slice(None), columns.index, columns.bias)
        out = torch.empty_like(view.q)
        for group in groups:
            one, columns = (
                slice(group.image, group.image + 1),
                self._columns_for(view, group.concept, True),
            )
            queries = view.q[one, group.index]
            out[one, group.index] = view.attend_to(queries, one, columns.index, columns.bias)
        return out

    def _columns_for(self, view: LayerView, owner: int | None, is_by_region: bool) -> Columns:
        """What the places of an owner see: the same in every layer."""
        key = (view.cond, owner, is_by_region)
        if key not in self._columns:
            self._columns[key] = seen_columns(
                self._references_of(view),
                view.references,
                view.k.shape[1],
                owner,
                is_by_region,
                self._patch.outside,
            ).to(view.k.device)
        return self._columns[key]

    def _references_of(self, view: LayerView) -> Sequence[SequenceReference]:
        """One for each of the sequence. ValueError when these are not those that the node has
        seen."""
        references, sizes = (
            self._patch.references,
            [place.stop - place.start for place in view.references],
        )
        expected = [len(reference.bias) for reference in references]
        if sizes[: len(references)] != expected:
            raise ValueError(
                f"the model is given {len(sizes)} reference pictures of {_list_of(sizes)} tokens,"
                f" expected were {len(references)} of {_list_of(expected)}: a node after Edit"
                " Regions or MagicFace Apply changes the reference latents (put it before), or this"
                " model leaves them out: put Edit Model Reference Method after, set to 'index'"
            )
        # What was added after the node is for every place.
        return [
            *references,
            *(SequenceReference(None, torch.zeros(n)) for n in sizes[len(references) :]),
        ]


def _list_of(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes)) or "no"


def reference_latents_of(positive: list[Any]) -> list[Tensor]:
    """The reference latents of a CONDITIONING. ValueError when there are none, or its parts have
    others."""
    parts = [options.get("reference_latents") or [] for _, options in positive]
    if not parts or not parts[0]:
        raise ValueError(
            "positive has no reference latents: put Reference Latent (one for each picture) or"
            " TextEncodeQwenImageEditPlus with a VAE before this node"
        )
    shapes = [[latent.shape for latent in part] for part in parts]
    lengths = {tensor.shape[1] for tensor, _ in positive}
    if any(shape != shapes[0] for shape in shapes) or len(lengths) > 1:
        raise ValueError(
            "positive combines prompts with other words or other reference latents: connect one"
            " prompt, and combine after this node"
        )
    return list(parts[0])


@dataclass(frozen=True, eq=False)
class ConceptPictures:
    """The concepts' pictures as an edit model is given them, one after the other.

    latents: 1 C h w each; for_text: what the text encoder is shown, 1 H W 3 each; references: what
    they are in the sequence.
    """

    latents: tuple[Tensor, ...]
    for_text: tuple[Tensor, ...]
    references: tuple[SequenceReference, ...]

    @classmethod
    def of(
        cls, concepts: Sequence[Concept], vae: Any, backbone: JointTransformer, cells: Cells
    ) -> ConceptPictures:
        """At the sizes that edit models are trained with: of the model's own area, whatever the
        aspect. cells: how masks are laid on tokens. ValueError when a mask leaves nothing, a
        concept has a LoRA, or the model is given its pictures together with texts of theirs."""
        if backbone.tokens.order == "text, picture, padding":
            raise ValueError(
                "this model is given a text for each picture: encode the prompt with"
                " TextEncodeZImageOmni and use Edit Regions in place of MagicFace Apply"
            )
        latents, for_text, references = [], [], []
        step = backbone.pixels * backbone.tokens.patch
        for index, concept in enumerate(concepts):
            strength = concept.strength if concept.level is None else GIVEN_LEVELS[concept.level]
            if concept.text is not None:
                raise ValueError(
                    "a text of a region is read beside a reference pass only: set references to"
                    " 'reference pass', or leave the Layout Conditioning out"
                )
            if (concept.start, concept.end, concept.curve) != (0.0, 1.0, None):
                raise ValueError(
                    f"concept '{shown(concept.phrase)}' has times of its own (start, end or"
                    " strength_curve), which count beside a reference pass only: set references to"
                    " 'reference pass', or leave them as they were"
                )
            if concept.away or concept.layer_weights:
                raise ValueError(
                    f"concept '{shown(concept.phrase)}' has Concept Options, which count beside a"
                    " reference pass only: set references to 'reference pass', or leave them out"
                )
            if concept.images is None or concept.loras:
                raise ValueError(
                    "a concept's LoRA acts beside a reference pass only: set references to"
                    " 'reference pass', or leave the MagicFace Concept LoRA out"
                )
            for i, image in enumerate(concept.images):
                picture, masks = image[None, ..., :3], concept.mask
                side = math.sqrt(picture.shape[1] * picture.shape[2])
                latent = vae.encode(rescale(picture, backbone.reference_side / side, step))
                mask = None if masks is None else masks[i if len(masks) > 1 else 0]
                grid = backbone.tokens.grid((latent.shape[-2], latent.shape[-1]))
                reference = SequenceReference.weighed(index, math.exp(strength), mask, grid, cells)
                if reference.is_hidden:
                    raise ValueError(
                        f"mask of concept '{shown(concept.phrase)}' is empty after scaling to"
                        f" {grid[1]}x{grid[0]}: paint a larger region, or crop the image closer"
                    )
                latents.append(latent)
                for_text.append(rescale(picture, _SHOWN_SIDE / side, 1))
                references.append(reference)
        return cls(tuple(latents), tuple(for_text), tuple(references))


@dataclass(frozen=True)
class PlacedConcepts:
    """What of the references are concepts, with a region of their own. phrases: of those that have
    one, first; targets: of all; of_reference: for each reference its concept, None for the whole
    picture."""

    phrases: tuple[str, ...]
    targets: tuple[Tensor | None, ...]
    of_reference: tuple[int | None, ...]

    @classmethod
    def of(cls, references: Sequence[EditReference]) -> PlacedConcepts:
        """In the references' order."""
        by_words = [i for i, reference in enumerate(references) if reference.phrase]
        by_hand = [
            i
            for i, reference in enumerate(references)
            if not reference.phrase and reference.target_region is not None
        ]
        order = [*by_words, *by_hand]
        return cls(
            tuple(references[i].phrase for i in by_words),
            tuple(references[i].target_region for i in order),
            tuple(order.index(i) if i in order else None for i in range(len(references))),
        )


def sequence_references(
    references: Sequence[EditReference], latents: Sequence[Tensor], backbone: JointTransformer
) -> tuple[SequenceReference, ...]:
    """What each of a model's reference latents is, in their order; those without a reference count
    as they were trained to, everywhere. ValueError when there are more references than latents, or
    a mask leaves nothing."""
    if len(references) > len(latents):
        raise ValueError(
            f"{len(references)} Edit Reference nodes, but positive has {len(latents)} reference"
            " latents: give one node for each, in their order"
        )
    of_reference = PlacedConcepts.of(references).of_reference
    sequence = []
    for i, latent in enumerate(latents):
        grid = backbone.tokens.grid((latent.shape[-2], latent.shape[-1]))
        if i >= len(references):
            sequence.append(SequenceReference.weighed(None, 1.0, None, grid))
            continue
        reference, mask = references[i], None
        owner = f"mask of reference {i + 1} ('{shown(reference.phrase)}')"
        if reference.mask is not None:
            check_painted(reference.mask, 0.0, owner, "paint over the part of the picture to take")
            mask = centred(reference.mask, (latent.shape[-2], latent.shape[-1]))
        entry = SequenceReference.weighed(of_reference[i], reference.strength, mask, grid)
        if reference.strength > 0 and entry.is_hidden:
            raise ValueError(
                f"{owner} is empty after scaling to {grid[1]}x{grid[0]}: paint a larger part"
            )
        sequence.append(entry)
    return tuple(sequence)
