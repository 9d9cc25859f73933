"""Procedural portraits: attributes, a caption, a picture in one of four styles, an exact mask for
every part.

Everything follows from the attributes, so a portrait can be drawn again in another style, or with
another hat, and compared pixel by pixel: the toy world has the ground truth that photographs lack.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Gender = Literal["woman", "man"]
Style = Literal["cartoon", "sketch", "pastel", "neon"]
STYLES: tuple[Style, ...] = ("cartoon", "sketch", "pastel", "neon")
PATTERNS = ("plain", "striped", "dotted", "checkered")
HAT_KINDS = ("top", "sun", "beanie")
HAIR_STYLES = ("long", "bob", "short")
EXPRESSIONS = ("smiling", "frowning", "surprised", "calm")

GARMENT_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 44),
    "orange": (250, 140, 34),
    "yellow": (252, 214, 48),
    "green": (46, 160, 72),
    "blue": (44, 92, 220),
    "purple": (132, 58, 178),
    "pink": (248, 130, 184),
    "white": (246, 246, 246),
    "black": (44, 42, 50),
}
BACKGROUND_COLOURS: dict[str, tuple[int, int, int]] = {
    "pink": (250, 190, 214),
    "blue": (146, 176, 238),
    "green": (150, 212, 160),
    "yellow": (253, 232, 140),
    "orange": (252, 190, 130),
    "purple": (190, 158, 218),
    "white": (250, 250, 250),
    "gray": (172, 174, 180),
}
HAIR_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (38, 34, 40),
    "brown": (112, 68, 36),
    "blonde": (236, 196, 84),
    "red": (190, 62, 30),
    "gray": (156, 156, 162),
}
SKIN_TONES: tuple[tuple[int, int, int], ...] = (
    (255, 224, 196),
    (238, 190, 150),
    (198, 140, 98),
    (140, 90, 58),
    (96, 60, 42),
)
LENS_COLOURS: dict[str, tuple[int, int, int]] = {
    "glasses": (226, 238, 246),
    "sunglasses": (34, 34, 44),
}

SKIN_NAMES = ("pale", "light", "tan", "brown", "dark")
"""What captions call each of SKIN_TONES, when they are asked to."""

PARTS = ("background", "hair", "shirt", "scarf", "face", "hat", "glasses")
"""Parts that a mask can be asked for. 'face' is skin with eyes, nose, mouth, ears and neck."""

_CHARCOAL = (58, 56, 66)
_INK = (44, 36, 44)
_PAPER = (247, 243, 234)
_NIGHT = (16, 13, 32)
_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Garment:
    """Something worn. `kind` is only used by hats."""

    colour: str
    pattern: str = "plain"
    kind: str = ""


@dataclass(frozen=True)
class Pose:
    """Where the head is. Offsets in parts of the picture's side, scale 1 = default size, tilt in
    degrees."""

    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    tilt: float = 0.0


@dataclass(frozen=True)
class Portrait:
    """All that decides a portrait. `face_width`, `eye_size` and `eye_spacing` (1 = average) are the
    identity beyond colours."""

    gender: Gender
    skin: tuple[int, int, int]
    hair: str
    hair_style: str
    shirt: Garment
    background: str
    hat: Garment | None = None
    scarf: Garment | None = None
    glasses: Literal["glasses", "sunglasses"] | None = None
    beard: bool = False
    expression: str = "calm"
    style: Style = "cartoon"
    pose: Pose = Pose()
    face_width: float = 1.0
    eye_size: float = 1.0
    eye_spacing: float = 1.0


@dataclass(frozen=True)
class Rendering:
    """`image`: H W 3, float32 in 0..1. `masks`: for every name in PARTS an H W float32 coverage in
    0..1; they add up to 1."""

    image: np.ndarray
    masks: dict[str, np.ndarray]


def sample_portrait(seed: int, style: Style | None = None) -> Portrait:
    """Draws a portrait's attributes from a seed; `style` fixes the style and changes nothing
    else."""
    rng = random.Random(seed)

    def garment(kinds: tuple[str, ...] = ("",)) -> Garment:
        pattern = rng.choices(PATTERNS, (0.55, 0.15, 0.15, 0.15))[0]
        return Garment(rng.choice(list(GARMENT_COLOURS)), pattern, rng.choice(kinds))

    genders: tuple[Gender, Gender] = ("woman", "man")
    gender = rng.choice(genders)
    portrait = Portrait(
        gender=gender,
        skin=rng.choice(SKIN_TONES),
        hair=rng.choice(list(HAIR_COLOURS)),
        hair_style=rng.choice(HAIR_STYLES[:2] if gender == "woman" else ("short", "short", "bob")),
        shirt=garment(),
        background=rng.choice(list(BACKGROUND_COLOURS)),
        hat=garment(HAT_KINDS) if rng.random() < 0.65 else None,
        scarf=garment() if rng.random() < 0.5 else None,
        glasses=rng.choices((None, "glasses", "sunglasses"), (0.55, 0.22, 0.23))[0],
        beard=gender == "man" and rng.random() < 0.35,
        expression=rng.choice(EXPRESSIONS),
        style=rng.choices(STYLES, (0.4, 0.2, 0.2, 0.2))[0],
        pose=Pose(
            rng.uniform(-0.08, 0.08),
            rng.uniform(-0.03, 0.07),
            rng.uniform(0.92, 1.2),
            rng.uniform(-8, 8),
        ),
        face_width=rng.uniform(0.9, 1.12),
        eye_size=rng.uniform(0.88, 1.15),
        eye_spacing=rng.uniform(0.92, 1.1),
    )
    return replace(portrait, style=style) if style else portrait


def caption(portrait: Portrait, mention: frozenset[str] = frozenset(PARTS)) -> str:
    """The portrait in words, e.g. 'a smiling woman with red hair wearing a blue striped top hat and
    a green scarf, pink background, sketch style'. Parts that are not in `mention` stay unsaid."""
    return "".join(words for words, _ in caption_phrases(portrait, mention))


def caption_phrases(
    portrait: Portrait, mention: frozenset[str] = frozenset(PARTS)
) -> list[tuple[str, str | None]]:
    """The caption cut into phrases, each with the part that it names (None: no part). Joined, they
    are the caption. `mention`: what is said, out of PARTS and 'skin' (the tone of the skin)."""
    mood = "" if portrait.expression == "calm" else portrait.expression + " "
    phrases: list[tuple[str, str | None]] = [("a ", None), (mood + portrait.gender, "face")]
    if "skin" in mention:
        phrases += [(" with ", None), (f"{skin_name(portrait)} skin", "face")]
    if "hair" in mention:
        joint = " and " if "skin" in mention else " with "
        phrases += [(joint, None), (f"{portrait.hair} hair", "hair")]
        if portrait.beard:
            phrases += [(" and a ", None), ("beard", "hair")]
    worn = _worn(portrait, mention)
    for i, (article, words, part) in enumerate(worn):
        joint = " wearing " if i == 0 else " and " if i == len(worn) - 1 else ", "
        phrases += [(joint + article, None), (words, part)]
    if "background" in mention:
        phrases += [(", ", None), (f"{portrait.background} background", "background")]
    return [*phrases, (f", {portrait.style} style", None)]


def _worn(portrait: Portrait, mention: frozenset[str]) -> list[tuple[str, str, str]]:
    """(article, words, part) of what a person wears, as far as it is to be mentioned."""
    worn: list[tuple[str, str, str]] = []
    if portrait.hat and "hat" in mention:
        worn.append((*_garment_words(portrait.hat, "hat"), "hat"))
    if portrait.glasses and "glasses" in mention:
        worn.append(("", portrait.glasses, "glasses"))
    for name, garment in (("scarf", portrait.scarf), ("shirt", portrait.shirt)):
        if garment and name in mention:
            worn.append((*_garment_words(garment, name), name))
    return worn


def _garment_words(garment: Garment, name: str) -> tuple[str, str]:
    adjectives = (
        [garment.colour]
        + ([garment.pattern] if garment.pattern != "plain" else [])
        + ([garment.kind] if garment.kind else [])
    )
    return "an " if adjectives[0][0] in "aeiou" else "a ", " ".join([*adjectives, name])


@dataclass(frozen=True)
class Scene:
    """Two people side by side. They share the background and the style of `left`; `front` says
    whose shoulder hides the other's ('left' or 'right')."""

    left: Portrait
    right: Portrait
    front: Literal["left", "right"] = "left"


@dataclass(frozen=True)
class SceneRendering:
    """`image`: H W 3, float32 in 0..1. `masks`: for (person, part) an H W float32 coverage in 0..1,
    person 0 on the left and 1 on the right; the background belongs to both and is only there as
    (0, 'background'). They add up to 1."""

    image: np.ndarray
    masks: dict[tuple[int, str], np.ndarray]


def sample_scene(seed: int, style: Style | None = None) -> Scene:
    """Draws two people's attributes from a seed, independently of each other; `style` fixes the
    style and changes nothing else."""
    # Seeds of scenes must not repeat the portraits of the same seeds.
    rng = random.Random(f"scene {seed}")
    people = [sample_portrait(rng.randrange(1 << 48), style) for _ in range(2)]
    left, right = (
        replace(
            person,
            style=people[0].style,
            background=people[0].background,
            pose=Pose(
                side * 0.235 + rng.uniform(-0.025, 0.025),
                rng.uniform(-0.04, 0.06),
                rng.uniform(0.62, 0.78),
                rng.uniform(-8, 8),
            ),
        )
        for side, person in zip((-1, 1), people, strict=True)
    )
    return Scene(left, right, rng.choice(("left", "right")))


def scene_caption_phrases(
    scene: Scene, mention: tuple[frozenset[str], frozenset[str]]
) -> list[tuple[str, str | None, int]]:
    """The caption of a scene cut into phrases, each with the part that it names (None: no part) and
    the person whose part it is: 'a man with red hair and a blue hat, a woman with black hair and a
    green scarf, pink background, sketch style'. `mention`: what is said of the left and of the
    right person, out of PARTS and 'skin'; the background is said when the left one's has it."""
    phrases: list[tuple[str, str | None, int]] = []
    for index, person in enumerate((scene.left, scene.right)):
        mood = "" if person.expression == "calm" else person.expression + " "
        phrases += [(", a " if index else "a ", None, index), (mood + person.gender, "face", index)]
        traits = _traits(person, mention[index])
        for i, (article, words, part) in enumerate(traits):
            joint = " with " if i == 0 else " and " if i == len(traits) - 1 else ", "
            phrases += [(joint + article, None, index), (words, part, index)]
    if "background" in mention[0]:
        phrases += [(", ", None, 0), (f"{scene.left.background} background", "background", 0)]
    return [*phrases, (f", {scene.left.style} style", None, 0)]


def _traits(person: Portrait, mention: frozenset[str]) -> list[tuple[str, str, str]]:
    """(article, words, part) of all that is said of a person after 'with'."""
    traits: list[tuple[str, str, str]] = []
    if "skin" in mention:
        traits.append(("", f"{skin_name(person)} skin", "face"))
    if "hair" in mention:
        traits.append(("", f"{person.hair} hair", "hair"))
        if person.beard:
            traits.append(("a ", "beard", "hair"))
    return [*traits, *_worn(person, mention)]


def skin_name(portrait: Portrait) -> str:
    """What captions call the portrait's skin, one of SKIN_NAMES."""
    return SKIN_NAMES[SKIN_TONES.index(portrait.skin)]


def render_scene(scene: Scene, size: int = 256) -> SceneRendering:
    """Draws a scene at `size` x `size` pixels (a multiple of 8, 64 or more)."""
    people = (scene.left, scene.right)
    canvases = [_draw(person, _drawing_side(size)) for person in people]
    layers = [_paint_layer(person, canvas) for person, canvas in zip(people, canvases, strict=True)]
    back, front = (1, 0) if scene.front == "left" else (0, 1)
    regions = [np.array(canvas.regions) for canvas in canvases]
    hides = (regions[front] != _BACKGROUND) | layers[front].inked
    regions[back][hides] = _NOBODY
    regions[front][~hides] = _NOBODY
    stencil = Image.fromarray(hides)

    def over(front_picture: Image.Image, back_picture: Image.Image) -> Image.Image:
        return Image.composite(front_picture, back_picture, stencil)

    back_tubes, front_tubes = layers[back].tubes, layers[front].tubes
    layer = _Layer(
        over(layers[front].picture, layers[back].picture),
        over(front_tubes, back_tubes) if front_tubes and back_tubes else None,
        np.where(hides, layers[front].inked, layers[back].inked),
    )
    masks = {
        (index, part): _coverage(regions[index], part)
        for index in range(2)
        for part in PARTS
        if part != "background"
    }
    # Where a line of the person in front lies on the background, neither region map says so.
    masks[0, "background"] = _coverage(
        np.where(np.minimum(*regions) == _BACKGROUND, _BACKGROUND, _NOBODY), "background"
    )
    return SceneRendering(_reduced(_finish(layer, scene.left.style)), masks)


# What is drawn, back to front. Every id below is one flat region; PART_OF says which part of the
# portrait it belongs to.
(
    _BACKGROUND,
    _HAIR_BACK,
    _NECK,
    _SHIRT,
    _SCARF,
    _EAR,
    _FACE,
    _BEARD,
    _HAIR,
    _WHITE,
    _PUPIL,
    _MOUTH,
    _NOSE,
    _LENS,
    _FRAME,
    _HAT,
    _BAND,
) = range(17)
_PART_OF = {
    _BACKGROUND: "background",
    _HAIR_BACK: "hair",
    _HAIR: "hair",
    _BEARD: "hair",
    _SHIRT: "shirt",
    _SCARF: "scarf",
    _NECK: "face",
    _EAR: "face",
    _FACE: "face",
    _WHITE: "face",
    _PUPIL: "face",
    _MOUTH: "face",
    _NOSE: "face",
    _LENS: "glasses",
    _FRAME: "glasses",
    _HAT: "hat",
    _BAND: "hat",
}
_NO_INK = 255
_NOBODY = 254
"""In the region map of one person of a scene: where the other one shows."""

Points = list[tuple[float, float]]


def _ellipse(
    cx: float, cy: float, rx: float, ry: float, start: float = 0, stop: float = 360
) -> Points:
    n = 28
    angles = (math.radians(start + (stop - start) * i / n) for i in range(n + 1))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


class _Canvas:
    """A region map and an outline map, drawn together so that what lies in front hides the lines
    behind it."""

    def __init__(self, side: int, pose: Pose):
        self.side = side
        self.pose = pose
        self.regions = Image.new("L", (side, side), _BACKGROUND)
        self.outlines = Image.new("L", (side, side), _NO_INK)
        self._draw_regions = ImageDraw.Draw(self.regions)
        self._draw_outlines = ImageDraw.Draw(self.outlines)

    def _place(self, points: Points) -> Points:
        pose, (cx, cy) = self.pose, (0.5, 0.6)
        cos, sin = math.cos(math.radians(pose.tilt)), math.sin(math.radians(pose.tilt))
        placed = []
        for x, y in points:
            # The body below the chin leans far less than the head, or the shoulders would leave the
            # picture.
            lean = 1.0 if y < 0.66 else max(0.0, 1 - (y - 0.66) / 0.12)
            u, v = (x - cx) * pose.scale, (y - cy) * pose.scale
            rx, ry = u * cos - v * sin, u * sin + v * cos
            u, v = u + (rx - u) * lean, v + (ry - v) * lean
            placed.append(((u + cx + pose.dx) * self.side, (v + cy + pose.dy) * self.side))
        return placed

    def shape(self, region: int, points: Points, outline: float = 0.018) -> None:
        placed = self._place(points)
        self._draw_regions.polygon(placed, fill=region)
        self._draw_outlines.polygon(placed, fill=_NO_INK)
        if outline:
            self._draw_outlines.line(
                [*placed, placed[0], placed[1]],
                fill=region,
                width=max(1, round(outline * self.side)),
                joint="curve",
            )

    def stroke(self, region: int, points: Points, width: float) -> None:
        placed, pixels = self._place(points), max(1, round(width * self.side))
        self._draw_regions.line(placed, fill=region, width=pixels, joint="curve")
        self._draw_outlines.line(placed, fill=region, width=pixels, joint="curve")


def _draw(portrait: Portrait, side: int) -> _Canvas:
    canvas = _Canvas(side, portrait.pose)
    rx, ry, cx, cy = 0.165 * portrait.face_width, 0.195, 0.5, 0.46
    if portrait.hair_style == "long":
        canvas.shape(
            _HAIR_BACK,
            [
                *_ellipse(cx, cy - 0.02, rx + 0.065, ry + 0.04, 180, 360),
                (cx + rx + 0.085, 0.86),
                (cx - rx - 0.085, 0.86),
            ],
        )
    elif portrait.hair_style == "bob":
        canvas.shape(
            _HAIR_BACK,
            [
                *_ellipse(cx, cy - 0.02, rx + 0.06, ry + 0.04, 180, 360),
                (cx + rx + 0.06, 0.63),
                (cx - rx - 0.06, 0.63),
            ],
        )
    canvas.shape(_NECK, [(0.43, 0.58), (0.57, 0.58), (0.575, 0.76), (0.425, 0.76)])
    canvas.shape(
        _SHIRT,
        [
            (0.42, 0.725),
            (0.5, 0.79),
            (0.58, 0.725),
            (0.74, 0.77),
            (0.83, 0.84),
            (0.88, 1.3),
            (0.12, 1.3),
            (0.17, 0.84),
            (0.26, 0.77),
        ],
    )
    if portrait.scarf:
        canvas.shape(_SCARF, [(0.54, 0.75), (0.655, 0.74), (0.685, 0.98), (0.565, 0.99)])
        canvas.shape(
            _SCARF,
            [
                (0.33, 0.695),
                (0.42, 0.665),
                (0.58, 0.665),
                (0.67, 0.695),
                (0.685, 0.775),
                (0.58, 0.82),
                (0.42, 0.82),
                (0.315, 0.775),
            ],
        )
    for sign in (-1, 1):
        canvas.shape(_EAR, _ellipse(cx + sign * (rx + 0.008), cy + 0.015, 0.034, 0.05))
    canvas.shape(_FACE, _ellipse(cx, cy, rx, ry))
    if portrait.beard:
        jaw = _ellipse(cx, cy, rx, ry, 8, 172)
        canvas.shape(
            _BEARD, [*jaw, *reversed(_ellipse(cx, cy + 0.02, rx * 0.72, ry * 0.52, 8, 172))]
        )
    _draw_features(canvas, portrait, cx, cy)
    fringe = -0.075 if portrait.hair_style == "short" else -0.055
    canvas.shape(
        _HAIR,
        [
            *_ellipse(cx, cy - 0.02, rx + 0.025, ry + 0.02, 183, 357),
            *_ellipse(cx, cy + fringe, rx * 0.98, 0.05, 0, -180),
        ],
    )
    if portrait.hair_style != "short":
        for sign in (-1, 1):
            canvas.shape(
                _HAIR,
                [
                    (cx + sign * (rx + 0.025), cy - 0.07),
                    (cx + sign * (rx - 0.02), cy - 0.08),
                    (cx + sign * (rx + 0.0), cy + 0.12),
                    (cx + sign * (rx + 0.04), cy + 0.12),
                ],
            )
    if portrait.glasses:
        _draw_glasses(canvas, portrait, cx, cy, rx)
    if portrait.hat:
        _draw_hat(canvas, portrait.hat.kind, cx, cy, rx)
    return canvas


def _draw_features(canvas: _Canvas, portrait: Portrait, cx: float, cy: float) -> None:
    spread, size = 0.072 * portrait.eye_spacing, portrait.eye_size
    brow = {"frowning": 0.014, "surprised": -0.016}.get(portrait.expression, 0.0)
    for sign in (-1, 1):
        x, y = cx + sign * spread, cy - 0.005
        canvas.shape(_WHITE, _ellipse(x, y, 0.04 * size, 0.036 * size), outline=0.01)
        canvas.shape(_PUPIL, _ellipse(x, y + 0.004, 0.02 * size, 0.022 * size), outline=0)
        inner, outer = (
            (x - sign * 0.032, y - 0.058 + brow),
            (x + sign * 0.036, y - 0.058 - brow * 0.6),
        )
        canvas.stroke(_PUPIL, [inner, outer], 0.016)
    canvas.stroke(
        _NOSE, [(cx - 0.004, cy + 0.035), (cx + 0.016, cy + 0.066), (cx - 0.008, cy + 0.07)], 0.012
    )
    y = cy + 0.115
    if portrait.expression == "smiling":
        canvas.shape(_MOUTH, _ellipse(cx, y - 0.018, 0.066, 0.05, 0, 180), outline=0.012)
    elif portrait.expression == "surprised":
        canvas.shape(_MOUTH, _ellipse(cx, y + 0.004, 0.028, 0.034), outline=0.012)
    elif portrait.expression == "frowning":
        canvas.stroke(_MOUTH, _ellipse(cx, y + 0.03, 0.052, 0.032, 195, 345), 0.02)
    else:
        canvas.stroke(_MOUTH, [(cx - 0.045, y), (cx + 0.045, y)], 0.02)


def _draw_glasses(canvas: _Canvas, portrait: Portrait, cx: float, cy: float, rx: float) -> None:
    spread = 0.078 * portrait.eye_spacing
    for sign in (-1, 1):
        ring = _ellipse(cx + sign * spread, cy + 0.002, 0.062, 0.056)
        if portrait.glasses == "sunglasses":
            canvas.shape(_LENS, ring, outline=0)
        canvas.stroke(_FRAME, [*ring, ring[1]], 0.021)
        canvas.stroke(
            _FRAME,
            [(cx + sign * (spread + 0.06), cy - 0.008), (cx + sign * (rx + 0.004), cy - 0.016)],
            0.018,
        )
    canvas.stroke(
        _FRAME, [(cx - spread + 0.06, cy - 0.004), (cx + spread - 0.06, cy - 0.004)], 0.018
    )


def _draw_hat(canvas: _Canvas, kind: str, cx: float, cy: float, rx: float) -> None:
    y, w = cy - 0.105, rx + 0.03
    if kind == "top":
        canvas.shape(
            _HAT,
            [
                (cx - w * 0.78, y - 0.005),
                (cx - w * 0.84, y - 0.235),
                (cx + w * 0.84, y - 0.235),
                (cx + w * 0.78, y - 0.005),
            ],
        )
        canvas.shape(
            _BAND,
            [
                (cx - w * 0.79, y - 0.02),
                (cx - w * 0.8, y - 0.072),
                (cx + w * 0.8, y - 0.072),
                (cx + w * 0.79, y - 0.02),
            ],
        )
        canvas.shape(_HAT, _ellipse(cx, y, w + 0.075, 0.032))
    elif kind == "sun":
        canvas.shape(_HAT, [*_ellipse(cx, y - 0.01, w * 0.95, 0.2, 180, 360)])
        canvas.shape(
            _BAND,
            [
                (cx - w * 0.94, y - 0.01),
                (cx - w * 0.9, y - 0.065),
                (cx + w * 0.9, y - 0.065),
                (cx + w * 0.94, y - 0.01),
            ],
        )
        canvas.shape(
            _HAT,
            [
                (cx - w - 0.14, y + 0.03),
                *_ellipse(cx, y + 0.015, w + 0.05, 0.04, 180, 360),
                (cx + w + 0.14, y + 0.03),
                *_ellipse(cx, y + 0.025, w + 0.1, 0.028, 0, 180),
            ],
        )
    else:
        canvas.shape(_HAT, _ellipse(cx, y - 0.205, 0.052, 0.05))
        canvas.shape(_HAT, [*_ellipse(cx, y + 0.0, w, 0.19, 180, 360)])
        canvas.shape(
            _BAND,
            [
                (cx - w - 0.012, y + 0.02),
                (cx - w - 0.008, y - 0.045),
                *_ellipse(cx, y - 0.045, w, 0.02, 180, 360),
                (cx + w + 0.008, y - 0.045),
                (cx + w + 0.012, y + 0.02),
                *_ellipse(cx, y + 0.02, w, 0.016, 0, 180),
            ],
        )


@cache
def _pattern_mask(pattern: str, side: int) -> np.ndarray:
    """True where a pattern shows its second colour. Anchored to the picture; its period is 1/8 of
    the side: two latent cells at 128 px."""
    period, mask = side // 8, np.zeros((side, side), bool)
    y, x = np.mgrid[0:side, 0:side] + 0.5
    if pattern == "striped":
        mask = (y % period) < period * 0.4
    elif pattern == "checkered":
        mask = ((x // (period / 2)) + (y // (period / 2))) % 2 < 1
    elif pattern == "dotted":
        across, down = x % period - period / 2, y % period - period / 2
        mask = across**2 + down**2 < (0.27 * period) ** 2
    elif pattern == "hatched":
        mask = ((x + y) % (period / 2)) < period * 0.16
    return mask


def _mix(a: tuple[int, int, int], b: tuple[int, int, int], amount: float) -> tuple[int, int, int]:
    r, g, b_ = (round(x + (y - x) * amount) for x, y in zip(a, b, strict=True))
    return r, g, b_


def tint(
    colour: tuple[int, int, int], style: Style, *, background: bool = False
) -> tuple[int, int, int]:
    """What a palette colour (RGB, 0..255) looks like as a flat area in a style."""
    if style == "sketch":
        return _mix(_PAPER, colour, 0.35 if background else 0.55)
    if style == "pastel":
        return _mix((255, 250, 246), colour, 0.55)
    if style == "neon":
        return _mix(_NIGHT, colour, 0.22 if background else 0.42)
    return colour


def second_colour(name: str) -> tuple[int, int, int]:
    """The other colour of a patterned garment: white, or charcoal on the two that are close to
    white."""
    return _CHARCOAL if name in ("white", "yellow") else GARMENT_COLOURS["white"]


def _region_colours(
    portrait: Portrait,
) -> dict[int, tuple[tuple[int, int, int], tuple[int, int, int], str]]:
    """First colour, second colour and pattern of every region, before the style."""
    # Hair may be dyed in any colour of cloth; captions and the training set know the natural ones
    # only.
    skin, hair = portrait.skin, {**GARMENT_COLOURS, **HAIR_COLOURS}[portrait.hair]
    flat = {
        _BACKGROUND: BACKGROUND_COLOURS[portrait.background],
        _HAIR_BACK: _mix(hair, (0, 0, 0), 0.12),
        _HAIR: hair,
        _BEARD: hair,
        _NECK: _mix(skin, (90, 30, 20), 0.15),
        _EAR: skin,
        _FACE: skin,
        _WHITE: (252, 252, 252),
        _PUPIL: (36, 30, 40),
        _MOUTH: (200, 54, 60),
        _NOSE: _mix(skin, (90, 20, 20), 0.5),
        _LENS: LENS_COLOURS["sunglasses"],
        _FRAME: (30, 30, 40),
    }
    colours = {region: (colour, colour, "plain") for region, colour in flat.items()}
    for region, garment in (
        (_SHIRT, portrait.shirt),
        (_SCARF, portrait.scarf),
        (_HAT, portrait.hat),
    ):
        if garment:
            colours[region] = (
                GARMENT_COLOURS[garment.colour],
                second_colour(garment.colour),
                garment.pattern,
            )
    if portrait.hat:
        band = _mix(GARMENT_COLOURS[portrait.hat.colour], (20, 16, 24), 0.35)
        colours[_BAND] = (band, band, "plain")
    return colours


# An index into the palette of one portrait: the region, plus one of these where a pattern, the
# hatching or an outline shows.
_PATTERNED, _HATCHED, _INKED = 32, 64, 128


@dataclass(frozen=True)
class _Layer:
    """One person painted, before what a style does to the whole picture. `picture`: all of it;
    `tubes`: the outlines alone, on black (neon only); `inked`: H W, where outlines lie."""

    picture: Image.Image
    tubes: Image.Image | None
    inked: np.ndarray


def _paint_layer(portrait: Portrait, canvas: _Canvas) -> _Layer:
    side, style = canvas.side, portrait.style
    regions, outlines = np.asarray(canvas.regions), np.asarray(canvas.outlines)
    palette, index = np.zeros((256, 3), np.uint8), regions.copy()
    for region, (colour, other, pattern) in _region_colours(portrait).items():
        is_background = region == _BACKGROUND
        palette[region] = tint(colour, style, background=is_background)
        palette[region + _PATTERNED] = tint(other, style, background=is_background)
        palette[region + _INKED] = _ink_colour(colour, region, style)
        if pattern != "plain":
            index[(regions == region) & _pattern_mask(pattern, side)] += _PATTERNED
    if style == "sketch":
        palette[_HATCHED:_INKED] = palette[:_HATCHED] * 0.82
        index[_pattern_mask("hatched", side) & (regions != _BACKGROUND) & (regions != _WHITE)] += (
            _HATCHED
        )
    inked = outlines != _NO_INK
    index[inked] = outlines[inked] + _INKED
    picture = _through_palette(index, palette)
    if style != "neon":
        return _Layer(picture, None, inked)
    palette[:_INKED] = 0
    return _Layer(picture, _through_palette(index, palette), inked)


def _finish(layer: _Layer, style: Style) -> Image.Image:
    if layer.tubes is not None:
        return _glow(layer.picture, layer.tubes, layer.inked)
    blur = ImageFilter.GaussianBlur(layer.picture.width / 220)
    return layer.picture.filter(blur) if style == "pastel" else layer.picture


def _through_palette(index: np.ndarray, palette: np.ndarray) -> Image.Image:
    picture = Image.fromarray(index).convert("P")
    picture.putpalette(palette.tobytes())
    return picture.convert("RGB")


def _ink_colour(colour: tuple[int, int, int], region: int, style: Style) -> tuple[int, int, int]:
    if style == "neon":
        # Dark things still need a visible tube: lift what is close to black.
        lifted = _mix(colour, (128, 118, 200), 0.75) if max(colour) < 110 else colour
        return _mix(lifted, (255, 255, 255), 0.15)
    drawn_in_colour = region in (_MOUTH, _FRAME, _PUPIL, _NOSE)
    if style == "sketch":
        return _mix(_PAPER, (70, 70, 82), 0.85)
    if style == "pastel":
        return (
            tint(colour, "pastel")
            if drawn_in_colour
            else _mix(tint(colour, "pastel"), (120, 90, 110), 0.35)
        )
    return colour if drawn_in_colour else _INK


def _glow(picture: Image.Image, tubes: Image.Image, inked: np.ndarray) -> Image.Image:
    halo = tubes.reduce(_SUPERSAMPLING).filter(
        ImageFilter.GaussianBlur(picture.width / 50 / _SUPERSAMPLING)
    )
    lit = ImageChops.add(picture, halo.resize(picture.size).point(lambda value: value * 0.8))
    return Image.composite(tubes, lit, Image.fromarray(inked))


def render(portrait: Portrait, size: int = 128) -> Rendering:
    """Draws a portrait at `size` x `size` pixels (a multiple of 8, 64 or more)."""
    canvas = _draw(portrait, _drawing_side(size))
    picture = _finish(_paint_layer(portrait, canvas), portrait.style)
    regions = np.asarray(canvas.regions)
    return Rendering(_reduced(picture), {name: _coverage(regions, name) for name in PARTS})


def _drawing_side(size: int) -> int:
    if size < 64 or size % 8:
        raise ValueError(f"portrait size must be a multiple of 8 and at least 64, got {size}")
    return size * _SUPERSAMPLING


def _reduced(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.reduce(_SUPERSAMPLING), np.float32) / 255


def _coverage(regions: np.ndarray, part: str) -> np.ndarray:
    table = np.array([255 * (_PART_OF.get(i) == part) for i in range(256)], np.uint8)
    return _reduced(Image.fromarray(table[regions]))
