"""Texts of phrases in a sampling run: what the region of a phrase reads beside the whole prompt, by
the layout of the step before, by the region that the user painted, or by both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...magic.concepts import Concept
from ...magic.region_texts import PhraseText
from ..layout.patch import LayoutPatch
from ..layout.tracker import LayoutTracker
from ..sampling.backbone import RegionText, TextsOfConds
from ..sampling.patch import SamplingStart
from ..sampling.range import SamplingRange, StrengthOverSampling
from ..sampling.rows import SamplingRows
from ..text.prompts import encode_with_loras
from .regions import areas_of_conds, regions_of_concepts, share_in_area


@dataclass(frozen=True, eq=False)
class TextOfConcept:
    """A text of a phrase. concept: index of the concept that it belongs to; positive, negative:
    CONDITIONING, None where there is no such text."""

    concept: int
    text: PhraseText
    positive: list[Any] | None
    negative: list[Any] | None


def texts_of(clip: Any, concepts: Sequence[Concept]) -> tuple[TextOfConcept, ...]:
    """The texts of all concepts, as the text encoder reads them with the LoRAs of the phrase.
    ValueError when a weight in one leaves numbers that no model can take."""

    def encode(text: str, concept: Concept) -> list[Any] | None:
        return encode_with_loras(clip, text, concept.loras) if text.strip() else None

    return tuple(
        TextOfConcept(
            index,
            concept.text,
            encode(concept.text.text, concept),
            encode(concept.text.negative, concept),
        )
        for index, concept in enumerate(concepts)
        if concept.text is not None
    )


class RegionTextRun:
    """The texts of one sampling run."""

    def __init__(self, texts: Sequence[TextOfConcept], layout: LayoutPatch, start: SamplingStart):
        self._texts, self._layout, self._guider = texts, layout, start.guider
        self._latent, self._latent_size = start.latent, start.latent_size
        self._strengths = {
            text: StrengthOverSampling(
                SamplingRange(text.text.start, text.text.end),
                text.text.curve,
                text.text.strength,
                start.model_sampling,
            )
            for text in texts
        }
        self._inside = {text.concept for text in texts if text.text.is_inside_target}
        self._contexts: dict[TextOfConcept, dict[str, Tensor]] | None = None
        self._areas: Mapping[Any, tuple[int, ...]] = {}

    def acting(
        self, rows: SamplingRows, tracker: LayoutTracker, x: Tensor, sigma: float
    ) -> TextsOfConds:
        """What the rows of each prompt read in a model call on `x`, by the layout as the call
        before has left it; nothing when that is nowhere, or none is read at this noise level."""
        strengths = {text: strength.at(sigma) for text, strength in self._strengths.items()}
        shares = regions_of_concepts(self._layout, tracker, self._inside, x)
        acting = [
            text for text in self._texts if strengths[text] and shares[text.concept] is not None
        ]
        if not acting:
            return {}
        if self._contexts is None:
            self._contexts = self._as_the_model_gets_them(x)
            self._areas = areas_of_conds(self._guider)
        texts: dict[Any, list[RegionText]] = {}
        for text in acting:
            share = shares[text.concept]
            assert share is not None
            for role, conds in (("positive", rows.ours), ("negative", rows.negative)):
                if (context := self._contexts[text].get(role)) is None:
                    continue
                for cond in conds:
                    own = share_in_area(share, self._areas.get(cond), self._latent_size)
                    texts.setdefault(cond, []).append(
                        RegionText(text.concept, context, own * strengths[text])
                    )
        return texts

    def _as_the_model_gets_them(self, x: Tensor) -> dict[TextOfConcept, dict[str, Tensor]]:
        """The context of each text: the host makes it of the CONDITIONING, as it does for
        prompts."""
        import comfy.sampler_helpers
        import comfy.samplers

        latent = self._latent.to(x.device)
        contexts: dict[TextOfConcept, dict[str, Tensor]] = {}
        for text in self._texts:
            texts = {"positive": text.positive, "negative": text.negative}
            conds = {
                role: comfy.sampler_helpers.convert_cond(conditioning[:1])
                for role, conditioning in texts.items()
                if conditioning is not None
            }
            conds_of_role = comfy.samplers.process_conds(
                self._guider.inner_model, latent, conds, x.device, latent_image=latent, seed=0
            )
            contexts[text] = {
                role: conds_of_role[role][0]["model_conds"]["c_crossattn"].cond for role in conds
            }
        return contexts
