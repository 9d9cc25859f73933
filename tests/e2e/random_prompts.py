"""Random prompts around our nodes, small enough to run by the hundred: most are valid but for one
or two things."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

from workflow_files import Prompt

Link = list[Any]

PREFIXES = ("Magic", "MagiC")
CHEAPER = {"MagiCaptureTrain": 0.15, "MagicPortraitMetrics": 0.3, "MagicStyleSampler": 0.4}
"""How often a node is tried, against 1."""

SMALL: dict[str, tuple[int, int]] = {
    "batch": (1, 1),
    "batch_size": (1, 2),
    "cell": (32, 64),
    "count": (1, 2),
    "height": (64, 64),
    "inversion_steps": (0, 1),
    "iterations": (1, 2),
    "lora_steps": (0, 1),
    "rank": (1, 2),
    "resolution": (0, 0),
    "size": (64, 64),
    "steps": (1, 2),
    "versions": (1, 1),
    "width": (64, 64),
}
"""The numbers on which the time hangs, by input."""

TEXTS: dict[str, tuple[str, ...]] = {
    "box": ("", "4,4,30,30", "0.1,0.1,0.5,0.5"),
    "class_word": ("man", "person"),
    "layers": ("fine", "all", "decoder", "o1-3"),
    "name": ("random", "random/inside"),
    "not_points": ("", "50,50"),
    "phrase": ("hat", "scarf", "a man"),
    "phrases": ("hat", "hat, scarf", "hat\nscarf"),
    "placeholder": ("<subject>", "<style>", "sks"),
    "points": ("", "20,20", "0.5,0.5"),
    "prompt": ("a man wearing a hat and a scarf", "a man wearing a (hat:1.2) and a scarf"),
    "save_as": ("", "random"),
    "text": ("hat", "hat. scarf"),
}
"""What a text input mostly gets, by its name; any other gets its default."""
CHOICES: dict[tuple[str, str], tuple[str, ...]] = {
    ("MagicConceptMask", "target"): (*4 * ("points",), "face"),
    ("MagicConceptMask", "box"): ("4,4,30,30", "0.1,0.1,0.5,0.5"),
    ("MagicConceptMask", "points"): (*4 * ("",), "20,20"),
    # Half precision is slow on a CPU.
    ("MagiCaptureTrain", "precision"): ("auto", "fp32"),
    ("MagicCorrespondence", "points"): ("20,20", "0.5,0.5\n3,3"),
}
"""What the widgets of a node mostly get where their names do not tell."""
MAKERS: dict[tuple[str, str], str] = {
    ("MagicCorrespondence", "model"): "MagicFaceApply",
}
"""Which node an input must come from where its type does not tell."""
NEEDED = {
    ("MagiCaptureStyle", "images"),
    ("MagiCaptureSubject", "images"),
    ("MagicConceptLora", "lora_model"),
    ("MagicFaceConcept", "image"),
    ("MagicStyleInvert", "clip"),
    ("MagicStyleInvert", "image"),
    ("MagicStyleInvert", "vae"),
}
"""Optional inputs without which a node has nothing to do."""
RANGES = {"start": (0.0, 0.4), "end": (0.5, 1.0), "alpha": (0.0, 0.5), "beta": (0.0, 0.5)}
"""Numbers that are refused in other ranges, together with others."""

ODD_TEXTS = (
    "",
    " ",
    "hat",
    ",",
    "hat, hat, hat",
    "帽子，围巾",
    "hat\u2028scarf",
    "((((hat:1.1",
    "hat:nan)",
    "embedding:nothing",
    "{person} {style} {",
    "../outside",
    "a/../../b",
    "C:\\con",
    "x" * 3000,
    "(" * 500,
    "nul\0letter",
    "half \ud800 letter",
    "1e400,inf,nan,-1",
    "1,2,3",
    "\ue000",
)
ODD_VALUES: tuple[Any, ...] = (
    math.nan,
    math.inf,
    -math.inf,
    -1,
    0,
    1e30,
    10**400,
    2**63,
    "7",
    "seven",
    True,
    None,
    {},
    {"a": 1},
    {"__value__": [1, 2]},
    [],
    ["1"],
    *ODD_TEXTS,
)


def defaults_of(info: dict[str, Any], kind: str) -> dict[str, Any]:
    """What the widgets of a node start with, as far as the schema says."""
    values: dict[str, Any] = {}
    for name, (choices, *rest) in info[kind]["input"].get("required", {}).items():
        options = rest[0] if rest else {}
        options_of_combo = choices if isinstance(choices, list) else options.get("options")
        if "default" in options:
            values[name] = options["default"]
        elif options_of_combo:
            values[name] = options_of_combo[0]
    return values


BASE: Prompt = {
    "toy": {"class_type": "MagicToyCheckpoint", "inputs": {}},
    **{
        part: {
            "class_type": "MagicToyPortrait",
            "inputs": {"seed": seed, "part": part, "style": "cartoon", "size": 64},
        }
        for seed, part in enumerate(("hat", "scarf", "face"))
    },
}
"""Nodes of every prompt: the host remembers their results as long as each prompt has them."""


class RandomPrompts:
    """Prompts by number: the same number gives the same prompt."""

    def __init__(self, object_info: dict[str, Any]) -> None:
        self.info = object_info
        self.ours = sorted(kind for kind in object_info if kind.startswith(PREFIXES))
        self.producers: dict[str, list[tuple[str, int]]] = {}
        for kind in self.ours:
            for slot, output in enumerate(object_info[kind]["output"]):
                self.producers.setdefault(str(output), []).append((kind, slot))

    def __getitem__(self, number: int) -> Prompt:
        return _Growing(self, random.Random(number)).prompt


class _Growing:
    """One prompt, while nodes are added to it."""

    def __init__(self, prompts: RandomPrompts, dice: random.Random) -> None:
        self.prompts, self.info, self.dice = prompts, prompts.info, dice
        self.prompt: Prompt = copy.deepcopy(BASE)
        weights = [CHEAPER.get(kind, 1.0) for kind in prompts.ours]
        [kind] = dice.choices(prompts.ours, weights)
        self._look_at(self._add(kind, 0))
        for _ in range(dice.choice((0, 0, 1, 1, 1, 2))):
            self._spoil()

    # ---- nodes ----

    def _add(self, kind: str, depth: int) -> str:
        node = str(len(self.prompt) + 1)
        inputs: dict[str, Any] = {}
        self.prompt[node] = {"class_type": kind, "inputs": inputs}
        for name, kinds, options, is_required in self._declarations(kind):
            is_optional = not is_required and (kind, name) not in NEEDED
            if is_optional and (depth > 2 or self.dice.random() < 0.6):
                continue
            value = self._value(kind, name, kinds, options)
            if value is None and (maker := MAKERS.get((kind, name))):
                made = self._add(maker, depth + 1)
                value = [made, self.info[maker]["output"].index(kinds)]
            elif value is None:
                value = self._source(str(kinds), depth + 1)
            if value is not None:
                inputs[name] = value
        return node

    def _declarations(self, kind: str) -> Iterator[tuple[str, Any, dict[str, Any], bool]]:
        for section in ("required", "optional"):
            for name, (kinds, *rest) in self.info[kind]["input"].get(section, {}).items():
                yield name, kinds, rest[0] if rest else {}, section == "required"

    def _value(self, node: str, name: str, kind: Any, options: dict[str, Any]) -> Any:
        """A value that the schema allows; None for what needs a link."""
        dice = self.dice
        if (node, name) in CHOICES:
            return dice.choice(CHOICES[node, name])
        choices = kind if isinstance(kind, list) else options.get("options")
        if choices is not None:
            return dice.choice(choices) if choices else "nothing"
        if kind == "BOOLEAN":
            return dice.random() < 0.5
        if kind == "STRING" and not options.get("forceInput"):
            return dice.choice(TEXTS.get(name, (options.get("default", "hat"),)))
        if kind not in ("INT", "FLOAT"):
            return None
        low, high = options.get("min", 0), options.get("max", 100)
        if name in RANGES:
            return round(dice.uniform(*RANGES[name]), 2)
        if name in SMALL:
            first, last = SMALL[name]
            return dice.randint(max(low, first), max(low, min(high, last)))
        if "default" in options and dice.random() < 0.5:
            return options["default"]
        if dice.random() < 0.2:
            return dice.choice((low, high))
        return dice.randint(low, high) if kind == "INT" else round(dice.uniform(low, high), 2)

    def _core(self, kind: str, **inputs: Any) -> str:
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": kind, "inputs": inputs}
        return node

    def _toy(self, slot: int) -> Link:
        return ["toy", slot]

    def _portrait(self, slot: int) -> Link:
        return [self.dice.choice(list(BASE)[1:]), slot]

    def _source(self, kind: str, depth: int) -> Link | None:
        """Where a value of a type comes from; None when nothing gives it."""
        dice = self.dice
        is_odd = dice.random() < 0.12
        if kind in ("MODEL", "CLIP", "VAE"):
            return self._toy(("MODEL", "CLIP", "VAE").index(kind))
        if kind == "IMAGE":
            return self._odd_image() if is_odd else self._portrait(0)
        if kind == "MASK":
            return self._odd_mask() if is_odd else self._portrait(1)
        if kind == "STRING":
            return self._portrait(2)
        if kind == "LATENT":
            side = dice.choice((16, 72, 256)) if is_odd else 64
            empty = "EmptySD3LatentImage" if dice.random() < 0.05 else "EmptyLatentImage"
            size = {"width": side, "height": 64, "batch_size": dice.choice((1, 1, 2))}
            return [self._core(empty, **size), 0]
        if kind == "CONDITIONING":
            text = dice.choice(TEXTS["prompt"])
            encoded = self._core("CLIPTextEncode", clip=self._toy(1), text=text)
            return [
                self._core("ConditioningZeroOut", conditioning=[encoded, 0]) if is_odd else encoded,
                0,
            ]
        if depth > 4:
            return None
        makers = [
            maker for each in kind.split(",") for maker in self.prompts.producers.get(each, [])
        ]
        if not makers:
            return None
        maker, slot = dice.choice(makers)
        return [self._add(maker, depth), slot]

    def _odd_image(self) -> Link:
        width, height = self.dice.choice(((1, 1), (7, 7), (600, 3), (3, 600), (64, 96)))
        batch = self.dice.choice((1, 1, 3))
        size = {"width": width, "height": height, "batch_size": batch, "color": 0x80A0C0}
        image = self._core("EmptyImage", **size)
        if self.dice.random() < 0.3:
            mask = self._core("SolidMask", value=0.5, width=width, height=height)
            image = self._core("JoinImageWithAlpha", image=[image, 0], alpha=[mask, 0])
        return [image, 0]

    def _odd_mask(self) -> Link:
        width, height = self.dice.choice(((1, 1), (64, 64), (300, 20), (64, 96)))
        value = self.dice.choice((0.0, 1.0))
        return [self._core("SolidMask", value=value, width=width, height=height), 0]

    # ---- what is wanted of the prompt ----

    def _look_at(self, node: str) -> None:
        """Adds what makes the host run a node: sampling with what it gives, or a look at it."""
        outputs = self.info[self.prompt[node]["class_type"]]["output"]
        if "MODEL" in outputs:
            latent = self._source("LATENT", 1)
            positive = (
                [node, outputs.index("CONDITIONING")]
                if "CONDITIONING" in outputs
                else self._source("CONDITIONING", 1)
            )
            sampler = self._core(
                "KSampler",
                model=[node, outputs.index("MODEL")],
                positive=positive,
                negative=self._source("CONDITIONING", 1),
                latent_image=[node, outputs.index("LATENT")] if "LATENT" in outputs else latent,
                seed=self.dice.randint(0, 99),
                steps=self.dice.randint(1, 2),
                cfg=self.dice.choice((1.0, 4.0)),
                sampler_name=self.dice.choice(("euler", "dpmpp_2m", "heun", "ddim")),
                scheduler=self.dice.choice(("normal", "karras", "ddim_uniform")),
                denoise=self.dice.choice((1.0, 1.0, 0.5)),
            )
            self._read_record(node, outputs, [sampler, 0])
            self._preview([sampler, 0])
        else:
            self._preview([node, self.dice.randrange(max(1, len(outputs)))])

    def _read_record(self, node: str, outputs: list[str], latent: Link) -> None:
        readers = {
            "MAGIC_LAYOUT": ("MagicLayoutMasks", "layout"),
            "MAGIC_ATTENTION": ("MagicAttentionHeatmap", "attention"),
            "MAGIC_CORRESPONDENCE": ("MagicCorrespondenceMap", "correspondence"),
        }
        for slot, output in enumerate(outputs):
            if output in readers and self.dice.random() < 0.7:
                kind, name = readers[output]
                reader = self._add(kind, 3)
                self.prompt[reader]["inputs"].update({name: [node, slot], "samples": latent})
                self._preview([reader, 0])

    def _preview(self, source: Link) -> None:
        self._core("PreviewAny", source=source)

    def _spoil(self) -> None:
        """Makes one input of a node of ours odd, or takes it away."""
        places = [
            (data["inputs"], name)
            for node, data in self.prompt.items()
            if data["class_type"].startswith(PREFIXES) and node not in BASE
            for name in data["inputs"]
        ]
        if not places:
            return
        inputs, name = self.dice.choice(places)
        if self.dice.random() < 0.12:
            del inputs[name]
        elif self._is_link(inputs[name]):
            self._link_elsewhere(inputs, name)
        elif isinstance(inputs[name], str) and self.dice.random() < 0.7:
            inputs[name] = self.dice.choice(ODD_TEXTS)
        else:
            inputs[name] = self.dice.choice(ODD_VALUES)

    def _is_link(self, value: Any) -> bool:
        """Whether an input is linked: what was made odd before may be a list as well."""
        return isinstance(value, list) and len(value) == 2 and value[0] in self.prompt

    def _link_elsewhere(self, inputs: dict[str, Any], name: str) -> None:
        """To another output of the type, in a tenth of the cases of any: the host checks types, but
        not whether there is such an output."""
        old, slot = inputs[name]
        kind = self.info[self.prompt[old]["class_type"]]["output"][slot]
        is_free = self.dice.random() < 0.1
        others = [
            [node, index]
            for node, data in self.prompt.items()
            for index, output in enumerate(self.info[data["class_type"]]["output"])
            if is_free or output == kind
        ]
        inputs[name] = self.dice.choice(others)
