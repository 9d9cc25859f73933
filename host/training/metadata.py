"""What a LoRA file says of its training, so that it can be used and trained again a year later."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ...magic.capture_sets import StyleSet, Subject
from ..models.lora_files import SETTINGS
from .draw import preview_prompts
from .lora import ADAPTERS
from .settings import FP8, CaptureSettings

_FORMAT = 1
_PACK = Path(__file__).parents[2]
_ARCHITECTURES = {
    "SD15": "stable-diffusion-v1",
    "SD20": "stable-diffusion-v2-768-v",
    "SDXL": "stable-diffusion-xl-v1-base",
    "SD3": "stable-diffusion-3",
    "Flux": "flux-1-dev",
    "FluxSchnell": "flux-1-schnell",
    "Chroma": "chroma",
    "Lumina2": "lumina-2",
    "ZImage": "z-image",
}
"""How Stability's model spec and those who write it call the host's families; others are called as
the host calls them."""
_VERSIONS = {"SD15": "sd_v1", "SD20": "sd_v2", "SDXL": "sdxl_base_v1-0", "Flux": "flux1"}
"""The same in the words of kohya's trainer."""
_PRECISIONS = {"fp32": "no", FP8: "bf16"}


@dataclass(frozen=True)
class BaseModel:
    """What was trained.

    family: as the host calls it. file: its name; empty where the host does not know it.
    """

    family: str
    file: str

    @classmethod
    def of(cls, model: Any) -> BaseModel:
        """Of a MODEL."""
        host = model.model
        config = getattr(host, "model_config", None)
        family = type(config).__name__ if type(config).__module__.startswith("comfy.") else ""
        # Newer hosts remember how a model was loaded, to do it again.
        origin = getattr(model, "cached_patcher_init", None) or (None, ())
        path = next((x for x in origin[1] if isinstance(x, str)), "")
        return cls(family or type(host).__name__, Path(path).name)


@dataclass(frozen=True, eq=False)
class TrainingAccount:
    """What there is to tell. side: of the training pictures, in pixels. steps: done. fingerprint:
    which training it was. started: seconds since 1970."""

    base: BaseModel
    subject: Subject
    style: StyleSet | None
    settings: CaptureSettings
    learns_words: bool
    side: int
    steps: int
    fingerprint: str
    started: float

    def metadata(self, title: str, now: float) -> dict[str, str]:
        """For the file: a table of ours, and what other programs look for (Stability's model spec,
        the keys of kohya's trainer). title: the file's name. now: seconds since 1970."""
        settings, words = self.settings, self._words()
        phrases = [str(word["phrase"]) for word in words]
        counts = {str(word["phrase"]): word["pictures"] for word in words}
        pictures = sum(int(word["pictures"]) for word in words)
        date = datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="seconds")
        about = {
            "format": _FORMAT,
            "words": words,
            "learns_words": self.learns_words,
            "prompts": preview_prompts(self.subject, self.style),
            "base_model": asdict(self.base),
            "steps": self.steps,
            "side": self.side,
            "settings": asdict(settings),
            "training": self.fingerprint,
            "date": date,
            "versions": _versions(),
        }
        architecture = _ARCHITECTURES.get(self.base.family, self.base.family)
        is_lora = settings.adapter == ADAPTERS[0]
        fields = {
            SETTINGS: json.dumps(about, ensure_ascii=False),
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": f"{architecture}/lora",
            "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
            "modelspec.title": title,
            "modelspec.date": date,
            "modelspec.resolution": f"{self.side}x{self.side}",
            "modelspec.trigger_phrase": ", ".join(phrases),
            "modelspec.usage_hint": self._hint(),
            "ss_output_name": title,
            "ss_sd_model_name": self.base.file,
            "ss_base_model_version": _VERSIONS.get(self.base.family, ""),
            "ss_network_module": "networks.lora" if is_lora else "lycoris.kohya",
            "ss_network_dim": str(settings.rank),
            "ss_network_alpha": str(settings.rank if is_lora else 1),
            "ss_network_args": "" if is_lora else json.dumps({"algo": settings.adapter.lower()}),
            "ss_steps": str(self.steps),
            "ss_unet_lr": str(settings.unet_rate),
            "ss_text_encoder_lr": str(settings.text_rate) if self.learns_words else "",
            "ss_batch_size_per_device": str(settings.batch),
            "ss_mixed_precision": _PRECISIONS.get(settings.precision, settings.precision),
            "ss_resolution": f"({self.side}, {self.side})",
            "ss_seed": str(settings.seed),
            "ss_num_train_images": str(pictures),
            "ss_tag_frequency": json.dumps({SETTINGS: counts}, ensure_ascii=False),
            "ss_training_started_at": str(self.started),
            "ss_training_finished_at": str(now),
        }
        return {key: value for key, value in fields.items() if value}

    def _words(self) -> list[dict[str, Any]]:
        words: list[dict[str, Any]] = []
        for each in self.subject.all:
            words.append(_word("subject", each, each.person))
        if self.style is not None:
            words.append(_word("style", self.style, self.style.placeholder))
        return words

    def _hint(self) -> str:
        prompts = " / ".join(preview_prompts(self.subject, self.style))
        if not self.learns_words:
            return f"write it so: {prompts}"
        return f"write it so: {prompts}. The words are embeddings, in files of their own"


def _word(kind: str, part: Subject | StyleSet, phrase: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "placeholder": part.placeholder,
        "class_word": part.class_word,
        "phrase": phrase,
        "pictures": len(part.pictures),
    }


def _versions() -> Mapping[str, str]:
    try:
        from comfyui_version import __version__ as comfyui
    except ImportError:
        comfyui = "unknown"
    project = (_PACK / "pyproject.toml").read_text(encoding="utf-8")
    pack = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    return {
        "magicportrait": pack[1] if pack else "unknown",
        "comfyui": comfyui,
        "torch": torch.__version__,
    }
