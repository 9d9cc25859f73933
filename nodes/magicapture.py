"""MagiCapture (arXiv 2309.06895): learn a person and a style from a handful of pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..demo import face_network
from ..host.faces import identity as identity_files
from ..host.faces.identity import Identity, list_files, load_identity
from ..host.models.lora_files import check_finite, check_saving, save_lora
from ..host.models.lora_patches import check_lora
from ..host.models.safe_files import UnwritableFile
from ..host.page.notices import notice
from ..host.page.training_watch import TrainingWatch
from ..host.pictures import capture_folder
from ..host.segmentation.face_masks import detectors_state, find_face_masks
from ..host.text.embedding_files import (
    embedding_state,
    load_embedding,
    name_part,
    save_embedding,
)
from ..host.text.learned_words import Embedding, with_learned_words
from ..host.training.checkpoint import CheckpointFile
from ..host.training.lora import ADAPTERS
from ..host.training.memory import memory_freed
from ..host.training.networks import settings_for
from ..host.training.pictures import masked_previews
from ..host.training.run import CaptureTraining, Trained
from ..host.training.settings import (
    DTYPES,
    IDENTITY_FORWARDS,
    WORDS,
    CaptureSettings,
    precision_for,
)
from ..magic.capture_sets import (
    CapturePicture,
    StyleSet,
    Subject,
    capture_pictures,
    check_placeholder,
)
from ..magic.pictures import mask_batch, picture_batch
from .declare import (
    IdentityType,
    LoraModel,
    advanced,
    as_text,
    choice_complaint,
    numbers_of,
    schema,
)
from .inputs import Node, check_ranges, check_texts, invert_input, inverted, refuse, warn_of_border

CATEGORY = "MagicPortrait/MagiCapture"
SubjectType = io.Custom("MAGIC_SUBJECT")
# As for chains of concepts, in declare.py.
SubjectsBefore = io.Custom("MAGIC_SUBJECT,MAGIC_SUBJECT_BEFORE")
StyleType = io.Custom("MAGIC_STYLE")
EmbeddingsType = io.Custom("MAGIC_EMBEDDINGS")
LossMap = io.Custom("LOSS_MAP")

SUBJECT_TEMPLATES = "\n".join(
    (
        "a photo of a {person}",
        "a portrait photo of a {person}",
        "a close photo of a {person}",
        "a bright photo of a {person}",
        "a snapshot of a {person}",
        "a photo of one {person}",
    )
)
STYLE_TEMPLATES = "\n".join(
    (
        "a picture of a {person} in the style of {style}",
        "a portrait of a {person} in the style of {style}",
        "a close portrait of a {person} in the style of {style}",
        "a {person} in {style} style",
        "one {person}, made in the style of {style}",
    )
)


PRESETS = ("as set", "official")
TOY_IDENTITY = "toy (comes with the pack)"


def _picture_inputs(
    what: str, templates: str, slots: str, placeholder: str, without_masks: str = ""
) -> list[io.Input]:
    """without_masks: what else a set does without face masks, for the tooltip."""
    return [
        io.Image.Input(
            "images",
            optional=True,
            tooltip=f"Pictures of the {what}: a batch, or a list of different sizes and aspects.",
        ),
        io.Mask.Input(
            "faces",
            optional=True,
            tooltip=(
                "The face in every picture, one mask each. Without: the largest face that a"
                " detector in models/face_detection or models/detection finds; else the whole"
                " picture counts as face, which binds less well." + without_masks
            ),
        ),
        io.Combo.Input(
            "folder",
            options=[capture_folder.NO_FOLDER, *capture_folder.list_folders()],
            tooltip=(
                "Instead of images: a folder in ComfyUI's input folder. Masks of the same names may"
                " lie in its subfolder mask; without, faces are found as for images."
            ),
        ),
        io.String.Input(
            "placeholder",
            default=placeholder,
            tooltip=(
                f"The new word that will mean this {what} in prompts. One word, better none that"
                " exists already."
            ),
        ),
        io.String.Input(
            "class_word",
            default="person",
            tooltip=(
                "What is in the pictures, in a word that the model knows: person, woman, man, dog."
            ),
        ),
        advanced(
            io.String.Input(
                "templates",
                multiline=True,
                default=templates,
                tooltip=(
                    f"Training prompts, one a line, each with the slots of {slots} once, as the"
                    " defaults have. Every step draws one."
                ),
            )
        ),
        invert_input("the face masks"),
        io.String.Input(
            "captions",
            force_input=True,
            optional=True,
            tooltip=(
                "What is on each picture, a list or one a line, instead of the templates;"
                f" {slots} {'are' if ' and ' in slots else 'is'} added where missing. An empty"
                " one: the templates. Without: name.txt beside each picture of the folder, where"
                " there is one."
            ),
        ),
    ]


def _first(value: Any) -> Any:
    """These nodes take lists, so that pictures may differ in size: all other inputs are lists of
    one."""
    return next(iter(value), None) if isinstance(value, list) else value


def _read(
    images: list[torch.Tensor] | None,
    faces: list[torch.Tensor] | None,
    folder: str,
    invert: bool,
    captions: list[str] | None,
    what: str,
) -> tuple[CapturePicture, ...]:
    check_texts(**{f"captions {i + 1}": text for i, text in enumerate(captions or ())})
    lines = list(captions or ())
    if len(lines) == 1:
        lines = lines[0].rstrip().split("\n") if lines[0].strip() else []
    if folder != capture_folder.NO_FOLDER:
        pictures, masks, names = capture_folder.read_folder(folder)
        lines = lines or capture_folder.read_captions(folder)
    else:
        pictures = _pictures(images or (), what)
        masks = [mask for batch in faces or () for mask in mask_batch(batch, "faces")] or None
        names = [f"{what} picture {i + 1}" for i in range(len(pictures))]
    if masks is None:
        masks = find_face_masks(pictures, names, what)
    else:
        # An empty one stays empty: it is not what somebody painted.
        masks = [inverted(mask) if invert and mask.any() else mask for mask in masks]
        warn_of_border(masks, f"a face mask of the {what}", invert)
    # Lines that the last pictures have not are empty ones.
    lines += [""] * (len(pictures) - len(lines)) if lines else []
    return capture_pictures(pictures, masks, names, lines)


def _pictures(images: Sequence[Any], what: str) -> list[torch.Tensor]:
    """H W C of each picture of a list of batches, or of pictures without that dimension."""
    tensors = [image if isinstance(image, torch.Tensor) else None for image in images]
    singles = [
        single
        for image in tensors
        for single in (image if image is not None and image.ndim == 4 else [image])
    ]
    return [
        picture_batch(None if single is None else single[None], f"{what} picture {i + 1}")[0]
        for i, single in enumerate(singles)
    ]


def _class_pictures(images: Sequence[Any]) -> tuple[CapturePicture, ...]:
    what = "class"
    pictures = _pictures(images, what)
    names = [f"{what} picture {i + 1}" for i in range(len(pictures))]
    return capture_pictures(pictures, None, names) if pictures else ()


def _fingerprint(folder: Any, linked: Any) -> str:
    """Changes with the folder's files and, where faces have to be found, with the detectors'."""
    name = _first(folder) or capture_folder.NO_FOLDER
    has_masks = (
        "faces" in linked if name == capture_folder.NO_FOLDER else capture_folder.has_masks(name)
    )
    return capture_folder.state_of(name) + ("" if has_masks else detectors_state())


def _check(placeholder: object) -> bool | str:
    """The form of the word, for validate_inputs. What it says beside the other words is checked
    where they are put together."""
    word = as_text(_first(placeholder))
    try:
        if word is not None:
            check_placeholder(word.strip())
    except ValueError as error:
        return str(error)
    return True


def _class_word(text: str) -> str:
    return text.strip() or "person"


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


class MagiCaptureSubject(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagiCaptureSubject",
            display_name="MagiCapture Subject",
            category=CATEGORY,
            description=(
                "The person to learn: a handful of pictures with face masks, the new word for them,"
                " and training prompts."
            ),
            search_aliases=["dreambooth", "training images", "person", "face", "identity"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                *_picture_inputs("subject", SUBJECT_TEMPLATES, "the person", "<subject>"),
                io.Image.Input(
                    "class_images",
                    optional=True,
                    tooltip=(
                        "Pictures of other people of that class, so that the class word keeps its"
                        " meaning (prior): trained with the class word alone, all of each picture."
                        " Given ones, or made by the model itself. Twice as many as images or more."
                    ),
                ),
                advanced(
                    io.Float.Input(
                        "class_weight",
                        default=1.0,
                        min=0.0,
                        max=10.0,
                        step=0.1,
                        optional=True,
                        tooltip=(
                            "How much class_images count. Higher: the class word keeps its meaning"
                            " better, and the subject is learned more slowly. No effect without"
                            " such pictures."
                        ),
                    )
                ),
                SubjectsBefore.Input(
                    "subjects",
                    optional=True,
                    tooltip=(
                        "Subjects before this one: one training learns all of them, each by its own"
                        " word, pictures and masks."
                    ),
                ),
            ],
            outputs=[
                SubjectType.Output(
                    display_name="subject",
                    tooltip="For MagiCapture Train, or another MagiCapture Subject behind it.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, placeholder: object = None) -> bool | str:
        return _check(placeholder)

    @classmethod
    def fingerprint_inputs(cls, folder: Any = None, **linked: Any) -> str:
        return _fingerprint(folder, linked)

    @classmethod
    def execute(
        cls,
        folder: list[str],
        placeholder: list[str],
        class_word: list[str],
        templates: list[str],
        images: list[torch.Tensor] | None = None,
        faces: list[torch.Tensor] | None = None,
        invert: list[bool] | None = None,
        captions: list[str] | None = None,
        class_images: list[torch.Tensor] | None = None,
        class_weight: list[float] | None = None,
        subjects: list[Subject] | None = None,
    ) -> io.NodeOutput:
        weight = 1.0 if class_weight is None else _first(class_weight)
        check_ranges(cls, class_weight=weight)
        words = {
            "placeholder": _first(placeholder),
            "class_word": _first(class_word),
            "templates": _first(templates),
        }
        check_texts(**words)
        pictures = _read(images, faces, _first(folder), bool(_first(invert)), captions, "subject")
        before = _first(subjects)
        subject = Subject(
            pictures,
            words["placeholder"].strip(),
            _class_word(words["class_word"]),
            _lines(words["templates"]),
            _class_pictures(class_images or ()),
            weight,
            () if before is None else before.all,
        )
        return io.NodeOutput(subject, ui=ui.PreviewImage(masked_previews(pictures), cls=cls))


class MagiCaptureStyle(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagiCaptureStyle",
            display_name="MagiCapture Style",
            category=CATEGORY,
            description=(
                "The style to learn: a handful of pictures of other people in it, with face masks,"
                " and the new word for it."
            ),
            search_aliases=["dreambooth", "training images", "style"],
            is_input_list=True,
            is_output_node=True,
            inputs=_picture_inputs(
                "style",
                STYLE_TEMPLATES,
                "person and style",
                "<style>",
                " Prompts with both words then train without refocusing: there is no place beside"
                " the face for the style.",
            ),
            outputs=[StyleType.Output(display_name="style", tooltip="For MagiCapture Train.")],
        )

    @classmethod
    def validate_inputs(cls, placeholder: object = None) -> bool | str:
        return _check(placeholder)

    @classmethod
    def fingerprint_inputs(cls, folder: Any = None, **linked: Any) -> str:
        return _fingerprint(folder, linked)

    @classmethod
    def execute(
        cls,
        folder: list[str],
        placeholder: list[str],
        class_word: list[str],
        templates: list[str],
        images: list[torch.Tensor] | None = None,
        faces: list[torch.Tensor] | None = None,
        invert: list[bool] | None = None,
        captions: list[str] | None = None,
    ) -> io.NodeOutput:
        words = {
            "placeholder": _first(placeholder),
            "class_word": _first(class_word),
            "templates": _first(templates),
        }
        check_texts(**words)
        pictures = _read(images, faces, _first(folder), bool(_first(invert)), captions, "style")
        style = StyleSet(
            pictures,
            words["placeholder"].strip(),
            _class_word(words["class_word"]),
            _lines(words["templates"]),
        )
        return io.NodeOutput(style, ui=ui.PreviewImage(masked_previews(pictures), cls=cls))


class MagicIdentityLoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicIdentityLoader",
            display_name="Load Identity Network",
            category=CATEGORY,
            description=(
                "A network that tells faces apart, for the identity loss: ArcFace or AdaFace"
                " weights from models/face_identity or models/insightface (safetensors, or onnx"
                " with the optional package onnx2torch)."
            ),
            search_aliases=[
                "arcface",
                "adaface",
                "insightface",
                "face embedding",
                "face",
                "identity",
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[TOY_IDENTITY, *list_files()],
                    tooltip=(
                        "ArcFace or AdaFace weights, such as w600k_r50. The toy network knows drawn"
                        " faces only; for photographs choose a file."
                    ),
                )
            ],
            outputs=[
                IdentityType.Output(
                    display_name="identity", tooltip="For MagiCapture Train and Portrait Metrics."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> str:
        return identity_files.state_of(file) if file and file != TOY_IDENTITY else ""

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        if file == TOY_IDENTITY:
            return io.NodeOutput(
                Identity(file, face_network.load(), face_network.SIDE, face_network.MARGIN)
            )
        return io.NodeOutput(load_identity(file))


class MagiCaptureTrain(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        default = CaptureSettings()
        return schema(
            node_id="MagiCaptureTrain",
            display_name="MagiCapture Train",
            category=CATEGORY,
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
                io.Int.Input(
                    "inversion_steps",
                    default=default.inversion_steps,
                    min=0,
                    max=100_000,
                    tooltip=(
                        "Steps of the first phase, which learns the two words only. More: the words"
                        " fit better. Transformers with trigger words have no first phase."
                    ),
                ),
                io.Int.Input(
                    "lora_steps",
                    default=default.lora_steps,
                    min=0,
                    max=100_000,
                    tooltip="Steps of the second phase. More: closer to the pictures, less free.",
                ),
                io.Int.Input(
                    "rank",
                    default=default.rank,
                    min=1,
                    max=128,
                    tooltip=(
                        "Size of the LoRA. Higher: room for more detail, and a larger file. The"
                        " paper uses 4."
                    ),
                ),
                io.Int.Input(
                    "batch",
                    default=default.batch,
                    min=1,
                    max=64,
                    tooltip="Pictures a step. More is steadier, slower and takes more memory.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip=(
                        "Draws the noise, pictures and prompts of the training. On a CPU the same"
                        " seed gives the same training, bit for bit."
                    ),
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", *DTYPES],
                    tooltip=(
                        "What the frozen model computes in; what is trained is fp32. Half precision"
                        " takes less memory. auto: half precision on a GPU, fp32 on a CPU. fp8, of"
                        " transformers: bf16, with the blocks' weights in a byte each."
                    ),
                ),
                io.Int.Input(
                    "preview_every",
                    default=250,
                    min=0,
                    max=100_000,
                    tooltip=(
                        "A picture of the subject in the style every so many steps; each costs 20"
                        " steps of sampling. 0: none."
                    ),
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=250,
                    min=0,
                    max=100_000,
                    tooltip=(
                        "Keeps the state every so many steps, and when you cancel, in"
                        " output/magicapture. The same training started again goes on from there."
                        " Of trainings that were given up the last four stay. 0: keeps nothing, so"
                        " a cancelled training starts anew."
                    ),
                ),
                advanced(
                    _rate(
                        "inversion_rate",
                        default.inversion_rate,
                        "Learning rate of the words in the first phase. Higher learns faster; too"
                        " high gives broken pictures.",
                    )
                ),
                advanced(
                    _rate(
                        "unet_rate",
                        default.unet_rate,
                        "Learning rate of the LoRA of the UNet or transformer. Higher learns"
                        " faster; too high gives broken pictures.",
                    )
                ),
                advanced(
                    _rate(
                        "text_rate",
                        default.text_rate,
                        "Learning rate of the text encoders' LoRA. Higher learns faster; too high"
                        " gives broken pictures.",
                    )
                ),
                advanced(
                    _rate(
                        "embedding_rate",
                        default.embedding_rate,
                        "Learning rate of the words in the second phase. Higher learns faster; too"
                        " high gives broken pictures.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "masked",
                        default=True,
                        tooltip=(
                            "Learn the subject inside the masks and the style outside. Off:"
                            " everything everywhere, as DreamBooth does."
                        ),
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "composed_prompts",
                        default=True,
                        tooltip=(
                            "Also train prompts with both words, with the style pictures as"
                            " stand-ins for all but the face. Off: the two words never learn to"
                            " stand together."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "refocus_weight",
                        default=default.refocus_weight,
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        tooltip=(
                            "Keeps the attention of each word in its own region: higher is"
                            " stricter. 0: off; the paper's value is 2.5."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "style_weight",
                        default=default.style_weight,
                        min=0.0,
                        max=10.0,
                        step=0.1,
                        tooltip=(
                            "How many times a style picture counts against one of the subject in"
                            " the first half of each phase. Higher: the style is learned first. 1:"
                            " equal."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "identity_weight",
                        default=default.identity_weight,
                        min=0.0,
                        max=10.0,
                        step=0.01,
                        tooltip=(
                            "How much likeness counts, with an identity network connected. 0: off."
                            " Lower it when faces become smeared: too much teaches patterns that"
                            " please the network."
                        ),
                    )
                ),
                advanced(
                    io.Int.Input(
                        "versions",
                        default=default.versions,
                        min=1,
                        max=64,
                        tooltip=(
                            "Encoded versions of each picture: mirrored, brighter, darker. Every"
                            " step draws one. More: more variety, and a longer start. 1: as it is."
                        ),
                    )
                ),
                advanced(
                    io.Int.Input(
                        "resolution",
                        default=0,
                        min=0,
                        max=2048,
                        step=64,
                        tooltip=(
                            "Pictures are scaled to the area of a square with this side, aspect"
                            " kept. Larger: finer detail, more memory. 0: the model's own size."
                        ),
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "gradient_checkpointing",
                        default=False,
                        tooltip=(
                            "Takes less memory and is slower: blocks are computed twice. The result"
                            " is the same."
                        ),
                    )
                ),
                advanced(
                    io.Int.Input(
                        "identity_until",
                        default=default.identity_until,
                        min=0,
                        max=1000,
                        optional=True,
                        tooltip=(
                            "With an identity network: likeness is judged where the noise (timestep"
                            " of 1000) is below this. Higher: in more steps, on blurrier faces;"
                            " from about 600 on nobody can be recognised, and patterns are learned."
                            " 0: never."
                        ),
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "identity_forward",
                        options=list(IDENTITY_FORWARDS),
                        default=default.identity_forward,
                        optional=True,
                        tooltip=(
                            "What likeness is judged on. shared: on what the step has predicted, if"
                            " its noise is below identity_until. own: on a second prediction with"
                            " noise below it, in every step that shows the subject, as in the"
                            " official code; slower."
                        ),
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "preset",
                        options=list(PRESETS),
                        default=PRESETS[0],
                        optional=True,
                        tooltip=(
                            "as set: the inputs of this node. official: steps, rates and weights as"
                            " set, all else by the rules of the official code, such as a second"
                            " prediction for likeness at any noise that is trained. To compare with"
                            " it; the page Fidelity of the documentation lists the rules."
                        ),
                    )
                ),
                advanced(
                    io.String.Input(
                        "lora_blocks",
                        default=default.lora_blocks,
                        optional=True,
                        tooltip=(
                            "In which blocks of a transformer the LoRA is: all, or names such as"
                            " d0-18,s0-37 (Flux) or d10-29. Fewer: a smaller file, and less of the"
                            " model changes. UNets: all."
                        ),
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "lora_mlp",
                        default=default.lora_mlp,
                        optional=True,
                        tooltip=(
                            "Of transformers: the LoRA is in the MLPs of these blocks too, not in"
                            " their attention alone. More room for detail, a larger file."
                        ),
                    )
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    optional=True,
                    tooltip=(
                        "Also writes the LoRA into output/loras, where LoRA loaders look, under a"
                        " name that begins so; the file says which words to write, and from what"
                        " and how it was trained (Save LoRA's does not). Set it before you queue:"
                        " another name is another training. Empty: nothing is written."
                    ),
                ),
                advanced(
                    io.Combo.Input(
                        "adapter",
                        options=list(ADAPTERS),
                        default=default.adapter,
                        optional=True,
                        tooltip=(
                            "What is trained: LoRA, or what ComfyUI's own trainer has beside it."
                            " LoHa: more detail for its size. LoKr: small files; a larger rank"
                            " makes them smaller still. OFT: turns the model's weights, and keeps"
                            " their lengths. All but LoRA take more time and memory."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "ema",
                        default=default.ema,
                        min=0.0,
                        max=0.9999,
                        step=0.0001,
                        round=False,
                        optional=True,
                        tooltip=(
                            "Gives the average of the last steps in place of the last one: this"
                            " share of it each step leaves, 0.99 for about a hundred steps. Higher:"
                            " steadier, and behind the training. 0: off."
                        ),
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "words",
                        options=list(WORDS),
                        default=default.words,
                        optional=True,
                        tooltip=(
                            "Of transformers: whether the placeholders become new words, with the"
                            " first phase, or stay trigger words, known by the LoRA alone. auto:"
                            " learned where the text encoder is CLIP alone; T5 and language models"
                            " would have to stay in memory for it. UNets always learn them."
                        ),
                    )
                ),
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

        def train() -> Trained:
            training = CaptureTraining(
                model, clip, vae, subject, style, identity, capture, watch.encoded, True
            )
            checkpoint = _checkpoint(training.fingerprint, checkpoint_every)
            try:
                return training.run(watch.stepped, checkpoint, watch.previewed, preview_every)
            except BaseException:
                watch.stopped(checkpoint is not None and checkpoint.path.is_file())
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


def _rate(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=1e-6, round=False, tooltip=tooltip
    )


def _checkpoint(fingerprint: str, every: int) -> CheckpointFile | None:
    import folder_paths

    if not every:
        return None
    folder = Path(folder_paths.get_output_directory()) / "magicapture"
    return CheckpointFile(folder / f"{fingerprint}.pt", every)


class MagiCaptureApply(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagiCaptureApply",
            display_name="MagiCapture Apply",
            category=CATEGORY,
            description=(
                "A model and a text encoder that know the subject and the style: write the new"
                " words in any prompt."
            ),
            search_aliases=["load lora", "embedding", "textual inversion", "dreambooth"],
            inputs=[
                io.Model.Input("model", tooltip="The model that was trained, or a relative of it."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                EmbeddingsType.Input(
                    "embeddings", tooltip="The new words, from MagiCapture Train or Load Embedding."
                ),
                LoraModel.Input(
                    "lora",
                    optional=True,
                    tooltip=(
                        "From MagiCapture Train. A saved one can be loaded with a LoRA loader"
                        " before this node instead."
                    ),
                ),
                io.Float.Input(
                    "strength_model",
                    default=0.6,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip=(
                        "How strongly the LoRA of the UNet or transformer acts. Higher: closer to"
                        " the training pictures; 0: not at all. The paper samples with 0.6, the toy"
                        " workflow with 1."
                    ),
                ),
                io.Float.Input(
                    "strength_clip",
                    default=0.9,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip=(
                        "How strongly the text encoders' LoRA acts. Higher: closer to the training"
                        " pictures; 0: not at all. The paper samples with 0.9, the toy workflow"
                        " with 1."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="For the sampler."),
                io.Clip.Output(
                    display_name="CLIP", tooltip="For prompts with the new words in them."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        embeddings: tuple[Embedding, ...],
        strength_model: float,
        strength_clip: float,
        lora: dict[str, torch.Tensor] | None = None,
    ) -> io.NodeOutput:
        import comfy.sd

        check_ranges(cls, strength_model=strength_model, strength_clip=strength_clip)
        clip = with_learned_words(clip, embeddings)
        if lora is not None:
            check_finite("lora", lora)
            check_lora("lora", lora, model, clip)
            model, clip = comfy.sd.load_lora_for_models(
                model, clip, lora, strength_model, strength_clip
            )
        return io.NodeOutput(model, clip)


class MagicEmbeddingSave(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEmbeddingSave",
            display_name="Save Embedding",
            category=CATEGORY,
            description=(
                "Writes each learned word as a safetensors file into the embeddings folder, where"
                " 'embedding:name' finds it."
            ),
            search_aliases=["textual inversion", "export embedding"],
            is_output_node=True,
            inputs=[
                EmbeddingsType.Input(
                    "embeddings", tooltip="Learned words, from MagiCapture Train."
                ),
                io.String.Input(
                    "name",
                    default="magicapture",
                    tooltip="The files are named after this and the placeholder.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="names",
                    tooltip=(
                        "The names to write in prompts, one a line: embedding:magicapture_subject."
                    ),
                )
            ],
        )

    @classmethod
    def execute(cls, embeddings: tuple[Embedding, ...], name: str) -> io.NodeOutput:
        check_texts(name=name)
        words = [name_part(embedding.placeholder) for embedding in embeddings]
        paths = [
            save_embedding(embedding, f"{'_'.join(name.split())}_{word or i}")
            for i, (embedding, word) in enumerate(zip(embeddings, words))
        ]
        return io.NodeOutput("\n".join(f"embedding:{path.stem}" for path in paths))


class MagicEmbeddingLoad(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        import folder_paths

        files = [
            name
            for name in folder_paths.get_filename_list("embeddings")
            if name.endswith(".safetensors")
        ]
        return schema(
            node_id="MagicEmbeddingLoad",
            display_name="Load Embedding",
            category=CATEGORY,
            description=(
                "Reads a learned word from the embeddings folder, to be used under its placeholder"
                " with MagiCapture Apply."
            ),
            search_aliases=["textual inversion", "import embedding"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files or ["(no safetensors file in the embeddings folder)"],
                    tooltip="A file of ComfyUI's embeddings folder.",
                ),
                io.String.Input(
                    "placeholder",
                    default="",
                    tooltip=(
                        "The word to write in prompts. Empty: the one that the file was saved with."
                    ),
                ),
                EmbeddingsType.Input("embeddings", optional=True, tooltip="Words before this one."),
            ],
            outputs=[EmbeddingsType.Output(display_name="embeddings", tooltip="All words so far.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: Any) -> str:
        return embedding_state(file) if file else ""

    @classmethod
    def execute(
        cls, file: str, placeholder: str, embeddings: tuple[Embedding, ...] = ()
    ) -> io.NodeOutput:
        check_texts(placeholder=placeholder)
        return io.NodeOutput((*embeddings, load_embedding(file, placeholder.strip())))
