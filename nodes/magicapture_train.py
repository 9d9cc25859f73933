"""MagiCapture Train (arXiv 2309.06895): learns a person and a style from a handful of pictures."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..host.faces.identity import Identity
from ..host.models.lora_files import check_saving, save_lora
from ..host.models.safe_files import UnwritableFile
from ..host.page.notices import notice
from ..host.page.training_watch import TrainingWatch
from ..host.training.checkpoint import CheckpointFile
from ..host.training.lora import ADAPTERS
from ..host.training.memory import memory_freed
from ..host.training.networks import settings_for
from ..host.training.run import CaptureTraining, Trained
from ..host.training.settings import WORDS, CaptureSettings, precision_for
from ..magic.capture_sets import StyleSet, Subject
from .declare import (
    EmbeddingsType,
    IdentityType,
    LoraModel,
    LossMap,
    StyleType,
    SubjectType,
    choice_complaint,
    numbers_of,
    schema,
)
from .inputs import Node, check_ranges, check_texts, refuse
from .magicapture_settings import PRESETS, settings_inputs


class MagiCaptureTrain(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagiCaptureTrain",
            display_name="MagiCapture Train",
            category="MagicPortrait/MagiCapture",
            description=(
                "Learns a subject and a style: first two new words (textual inversion), then LoRA"
                " of the UNet and the text encoders; of transformers (Flux, Z-Image, Qwen-Image)"
                " LoRA alone. Gives what Save LoRA, LoRA loaders and the loss graph understand."
            ),
            search_aliases=[
                "train lora",
                "lora training",
                "dreambooth",
                "textual inversion",
                "inversion",
                "character",
                "consistent character",
                "finetune",
                "personalize",
                "face",
                "identity",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "SD1.5, SD2.1, SDXL, Flux, Z-Image, Qwen-Image, Krea 2, SD3.5 or a"
                        " fine-tune. It is not changed."
                    ),
                ),
                io.Clip.Input("clip", tooltip="Its text encoder. It is not changed."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                SubjectType.Input("subject", tooltip="Who to learn, one or several in a chain."),
                StyleType.Input(
                    "style",
                    optional=True,
                    tooltip="The style to learn. Without: the subject alone.",
                ),
                IdentityType.Input(
                    "identity",
                    optional=True,
                    tooltip=(
                        "A face-embedding network: draws the learned face towards the subject's."
                        " Slower."
                    ),
                ),
                *settings_inputs(),
            ],
            outputs=[
                LoraModel.Output(
                    display_name="lora",
                    tooltip=(
                        "LoRA of UNet and text encoders, or of a transformer: for MagiCapture Apply"
                        " or Save LoRA."
                    ),
                ),
                EmbeddingsType.Output(
                    display_name="embeddings",
                    tooltip="The two words: for MagiCapture Apply or Save Embedding.",
                ),
                LossMap.Output(
                    display_name="loss_map", tooltip="The loss of every step: for Plot Loss Graph."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What was trained, how fast, and how each term of the loss went.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        subject: Subject,
        style: StyleSet | None = None,
        *,
        preview_every: int,
        checkpoint_every: int,
        precision: str,
        composed_prompts: bool,
        resolution: int,
        identity: Identity | None = None,
        preset: str = PRESETS[0],
        save_as: str = "",
        **settings: Any,
    ) -> io.NodeOutput:
        numbers = {name: value for name, value in settings.items() if name in numbers_of(cls)}
        check_ranges(
            cls,
            preview_every=preview_every,
            checkpoint_every=checkpoint_every,
            resolution=resolution,
            **numbers,
        )
        check_texts(lora_blocks=settings.get("lora_blocks", "all"), save_as=save_as)
        refuse(choice_complaint("adapter", settings.get("adapter", ADAPTERS[0]), ADAPTERS))
        refuse(choice_complaint("words", settings.get("words", WORDS[0]), WORDS))
        name = save_as.strip()
        if not (numbers["inversion_steps"] or numbers["lora_steps"]):
            raise ValueError("no steps: give inversion_steps or lora_steps some")
        capture = CaptureSettings(
            precision=precision_for(precision),
            composed=composed_prompts,
            side=resolution,
            **settings,
        )
        if preset == "official":
            capture = capture.as_official()
        capture = settings_for(model, clip, capture)
        if name:
            check_saving(name)
        node = cls.hidden.unique_id if cls.hidden else None
        watch = TrainingWatch(capture, subject, style, node)

        def look_for_checkpoint(fingerprint: str) -> None:
            checkpoint = _checkpoint(fingerprint, checkpoint_every)
            watch.on_checkpoint(checkpoint is not None and checkpoint.path.is_file())

        def train() -> Trained:
            training = CaptureTraining(
                model,
                clip,
                vae,
                subject,
                style,
                identity,
                capture,
                watch.on_encoding,
                checks_memory=True,
                on_recognised=look_for_checkpoint,
            )
            checkpoint = _checkpoint(training.fingerprint, checkpoint_every)
            try:
                return training.run(
                    watch.on_step, checkpoint, watch.on_preview, preview_every, watch.on_resume
                )
            except BaseException:
                watch.on_stop(checkpoint is not None and checkpoint.path.is_file())
                raise

        with memory_freed():
            trained = train()
        report = f"{trained.report}\n{_save(trained, name)}" if name else trained.report
        logging.info("MagiCapture: %s", report)
        outputs = trained.lora, trained.embeddings, {"loss": trained.history}, report
        if not watch.previews:
            return io.NodeOutput(*outputs)
        return io.NodeOutput(*outputs, ui=ui.PreviewImage(torch.cat(watch.previews), cls=cls))


def _save(trained: Trained, name: str) -> str:
    """Writes the file, and says where. One that cannot be written ends nothing: the LoRA is still
    there for other nodes."""
    try:
        path = save_lora(name, trained.lora, trained.account.metadata(Path(name).name, time.time()))
    except UnwritableFile as error:
        problem = f"the LoRA is not saved: {error}. Save LoRA can still write it"
        notice(problem)
        return problem
    return f"saved as {path}"


def _checkpoint(fingerprint: str, every: int) -> CheckpointFile | None:
    import folder_paths

    if not every:
        return None
    folder = Path(folder_paths.get_output_directory()) / "magicapture"
    return CheckpointFile(folder / f"{fingerprint}.pt", every)
