"""The widgets of MagiCapture Train: what a training is, and how it goes."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.training.lora import ADAPTERS
from ..host.training.settings import DTYPES, IDENTITY_FORWARDS, WORDS, CaptureSettings
from .declare import advanced

PRESETS = ("as set", "official")


def settings_inputs() -> list[io.Input]:
    """In the order that saved graphs know."""
    default = CaptureSettings()
    return [
        *_run_inputs(default),
        *_rate_inputs(default),
        *_loss_inputs(default),
        *_later_inputs(default),
    ]


def _run_inputs(default: CaptureSettings) -> list[io.Input]:
    """How much is learned, in which precision, and what is kept on the way."""
    return [
        io.Int.Input(
            "inversion_steps",
            default=default.inversion_steps,
            min=0,
            max=100_000,
            tooltip=(
                "Steps of the first phase, which learns the two words only. More: the words fit"
                " better. Transformers with trigger words have no first phase."
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
                "Size of the LoRA. Higher: room for more detail, and a larger file. The paper uses"
                " 4."
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
                "Draws the noise, pictures and prompts of the training. On a CPU the same seed"
                " gives the same training, bit for bit."
            ),
        ),
        io.Combo.Input(
            "precision",
            options=["auto", *DTYPES],
            tooltip=(
                "What the frozen model computes in; what is trained is fp32. Half precision takes"
                " less memory. auto: half precision on a GPU, fp32 on a CPU. fp8, of transformers:"
                " bf16, with the blocks' weights in a byte each."
            ),
        ),
        io.Int.Input(
            "preview_every",
            default=250,
            min=0,
            max=100_000,
            tooltip=(
                "A picture of the subject in the style every so many steps; each costs 20 steps of"
                " sampling. 0: none."
            ),
        ),
        io.Int.Input(
            "checkpoint_every",
            default=250,
            min=0,
            max=100_000,
            tooltip=(
                "Keeps the state every so many steps, and when you cancel, in output/magicapture."
                " The same training started again goes on from there. Of trainings that were given"
                " up the last four stay. 0: keeps nothing, so a cancelled training starts anew."
            ),
        ),
    ]


def _rate_inputs(default: CaptureSettings) -> list[io.Input]:
    return [
        _rate(
            "inversion_rate",
            default.inversion_rate,
            "Learning rate of the words in the first phase. Higher learns faster; too high gives"
            " broken pictures.",
        ),
        _rate(
            "unet_rate",
            default.unet_rate,
            "Learning rate of the LoRA of the UNet or transformer. Higher learns faster; too high"
            " gives broken pictures.",
        ),
        _rate(
            "text_rate",
            default.text_rate,
            "Learning rate of the text encoders' LoRA. Higher learns faster; too high gives broken"
            " pictures.",
        ),
        _rate(
            "embedding_rate",
            default.embedding_rate,
            "Learning rate of the words in the second phase. Higher learns faster; too high gives"
            " broken pictures.",
        ),
    ]


def _loss_inputs(default: CaptureSettings) -> list[io.Input]:
    """What counts how much, and what of the pictures is looked at."""
    return [
        advanced(
            io.Boolean.Input(
                "masked",
                default=True,
                tooltip=(
                    "Learn the subject inside the masks and the style outside. Off: everything"
                    " everywhere, as DreamBooth does."
                ),
            )
        ),
        advanced(
            io.Boolean.Input(
                "composed_prompts",
                default=True,
                tooltip=(
                    "Also train prompts with both words, with the style pictures as stand-ins for"
                    " all but the face. Off: the two words never learn to stand together."
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
                    "Keeps the attention of each word in its own region: higher is stricter. 0:"
                    " off; the paper's value is 2.5."
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
                    "How many times a style picture counts against one of the subject in the first"
                    " half of each phase. Higher: the style is learned first. 1: equal."
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
                    "How much likeness counts, with an identity network connected. 0: off. Lower it"
                    " when faces become smeared: too much teaches patterns that please the network."
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
                    "Encoded versions of each picture: mirrored, brighter, darker. Every step draws"
                    " one. More: more variety, and a longer start. 1: as it is."
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
                    "Pictures are scaled to the area of a square with this side, aspect kept."
                    " Larger: finer detail, more memory. 0: the model's own size."
                ),
            )
        ),
        advanced(
            io.Boolean.Input(
                "gradient_checkpointing",
                default=False,
                tooltip=(
                    "Takes less memory and is slower: blocks are computed twice. The result is the"
                    " same."
                ),
            )
        ),
    ]


def _later_inputs(default: CaptureSettings) -> list[io.Input]:
    """Those that came to the node later, and stand at the end for the sake of saved graphs."""
    return [
        advanced(
            io.Int.Input(
                "identity_until",
                default=default.identity_until,
                min=0,
                max=1000,
                optional=True,
                tooltip=(
                    "With an identity network: likeness is judged where the noise (timestep of"
                    " 1000) is below this. Higher: in more steps, on blurrier faces; from about 600"
                    " on nobody can be recognised, and patterns are learned. 0: never."
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
                    "What likeness is judged on. shared: on what the step has predicted, if its"
                    " noise is below identity_until. own: on a second prediction with noise below"
                    " it, in every step that shows the subject, as in the official code; slower."
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
                    "as set: the inputs of this node. official: steps, rates and weights as set,"
                    " all else by the rules of the official code, such as a second prediction for"
                    " likeness at any noise that is trained. To compare with it; the page Fidelity"
                    " of the documentation lists the rules."
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
                    " d0-18,s0-37 (Flux) or d10-29. Fewer: a smaller file, and less of the model"
                    " changes. UNets: all."
                ),
            )
        ),
        advanced(
            io.Boolean.Input(
                "lora_mlp",
                default=default.lora_mlp,
                optional=True,
                tooltip=(
                    "Of transformers: the LoRA is in the MLPs of these blocks too, not in their"
                    " attention alone. More room for detail, a larger file."
                ),
            )
        ),
        io.String.Input(
            "save_as",
            default="",
            optional=True,
            tooltip=(
                "Also writes the LoRA into output/loras, where LoRA loaders look, under a name that"
                " begins so; the file says which words to write, and from what and how it was"
                " trained (Save LoRA's does not). Set it before you queue: another name is another"
                " training. Empty: nothing is written."
            ),
        ),
        advanced(
            io.Combo.Input(
                "adapter",
                options=list(ADAPTERS),
                default=default.adapter,
                optional=True,
                tooltip=(
                    "What is trained: LoRA, or what ComfyUI's own trainer has beside it. LoHa: more"
                    " detail for its size. LoKr: small files; a larger rank makes them smaller"
                    " still. OFT: turns the model's weights, and keeps their lengths. All but LoRA"
                    " take more time and memory."
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
                    "Gives the average of the last steps in place of the last one: this share of it"
                    " each step leaves, 0.99 for about a hundred steps. Higher: steadier, and"
                    " behind the training. 0: off."
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
                    "Of transformers: whether the placeholders become new words, with the first"
                    " phase, or stay trigger words, known by the LoRA alone. auto: learned where"
                    " the text encoder is CLIP alone; T5 and language models would have to stay in"
                    " memory for it. UNets always learn them."
                ),
            )
        ),
    ]


def _rate(name: str, default: float, tooltip: str) -> io.Input:
    return advanced(
        io.Float.Input(
            name, default=default, min=0.0, max=1.0, step=1e-6, round=False, tooltip=tooltip
        )
    )
