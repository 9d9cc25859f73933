"""Concept masks with tiny random networks in the real files' formats, and without any."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch

from magicportrait.host.faces.detection import face_models
from magicportrait.host.models import folders as model_folders
from magicportrait.host.models.folders import DETECTORS, FACE_DETECTORS, MEDIAPIPE, SAMS
from magicportrait.host.pictures.conversion import as_pixels
from magicportrait.host.pictures.host_boxes import from_host_boxes
from magicportrait.host.segmentation.concept_masks import box_shape
from magicportrait.host.segmentation.grounding_dino import TextDetector, named_things
from magicportrait.host.segmentation.sam import build_sam
from magicportrait.magic.boxes import Box
from magicportrait.nodes.masks import NO_MODEL, NO_SAM, MagicConceptMask, MagicMaskRefine
from magicportrait.tests.host import tiny_vision

DEFAULTS = {
    "target": "text",
    "text": "hat, scarf",
    "sam": "tiny.pth",
    "detector": "tiny",
    "face_model": NO_MODEL,
    "face_area": "face",
    "choose": "all",
    "index": 0,
    "threshold": 0.3,
    "if_nothing": "error",
    "points": "",
    "not_points": "",
    "box": "",
}


@pytest.fixture(scope="module")
def model_store(tmp_path_factory) -> Path:
    models = tmp_path_factory.mktemp("models")
    tiny_vision.write_sam(models / "sams" / "tiny.pth")
    tiny_vision.write_grounding_dino(models / "grounding-dino" / "tiny")
    return models


@pytest.fixture
def use_models(monkeypatch):
    """Makes a folder the host's models folder; other places that the machine may have are left
    out."""

    def use(models: Path) -> Path:
        monkeypatch.setattr(folder_paths, "models_dir", str(models))
        kept = {folder.name for folder in (SAMS, DETECTORS, FACE_DETECTORS, MEDIAPIPE)}
        table = {
            name: entry
            for name, entry in folder_paths.folder_names_and_paths.items()
            if name not in kept
        }
        if MEDIAPIPE.name in folder_paths.folder_names_and_paths:
            table[MEDIAPIPE.name] = ([str(models / MEDIAPIPE.name)], {".safetensors"})
        monkeypatch.setattr(folder_paths, "folder_names_and_paths", table)
        return models

    return use


@pytest.fixture
def models(use_models, model_store) -> Path:
    return use_models(model_store)


@pytest.fixture
def no_models(use_models, tmp_path) -> Path:
    return use_models(tmp_path)


def pictures(count: int = 1, height: int = 70, width: int = 50) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(0))


def mask_of(image: torch.Tensor, boxes: object = None, **options: object) -> tuple:
    return MagicConceptMask.execute(image, **{**DEFAULTS, **options}, boxes=boxes).args


# ---- words ----


def test_text_boxes_are_those_of_the_library(models):
    """transformers' own post-processing, without our removal of boxes that show the same thing."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    image = pictures()[0]
    processor = AutoProcessor.from_pretrained(models / "grounding-dino" / "tiny")
    model = AutoModelForZeroShotObjectDetection.from_pretrained(models / "grounding-dino" / "tiny")
    inputs = processor(images=as_pixels(image), text="hat. scarf.", return_tensors="pt")
    # Another implementation's threshold has had two names.
    found = processor.image_processor.post_process_object_detection(
        model(**inputs), threshold=0.3, target_sizes=[(70, 50)]
    )[0]
    expected = {tuple(round(number, 2) for number in box) for box in found["boxes"].tolist()}
    ours = {
        tuple(round(number, 2) for number in box.corners)
        for box in TextDetector("tiny").find(image, "hat, scarf", 0.3)
    }
    assert 0 < len(ours) <= len(expected)
    assert ours <= expected


def test_a_detector_saved_in_half_precision_finds_the_same(models):
    from transformers import AutoModelForZeroShotObjectDetection

    folder, image = models / "grounding-dino" / "tiny", pictures()[0]
    full = TextDetector("tiny").find(image, "hat", 0.3)
    AutoModelForZeroShotObjectDetection.from_pretrained(folder).half().save_pretrained(folder)
    half = TextDetector("tiny").find(image, "hat", 0.3)
    assert full and [box.corners for box in half] == [
        pytest.approx(box.corners, abs=1.0) for box in full
    ]


def test_text_gives_a_mask_for_each_picture(models):
    mask, boxes, overlay = mask_of(pictures(2))
    assert mask.shape == (2, 70, 50) and overlay.shape == (2, 70, 50, 3) and len(boxes) == 2
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(mask[0], mask[1])
    for box in boxes[0] + boxes[1]:
        assert (
            0 <= box["x"] < box["x"] + box["width"] <= 50
            and 0 <= box["y"] < box["y"] + box["height"] <= 70
        )


def test_without_sam_the_boxes_are_the_mask(models):
    mask, boxes, _ = mask_of(pictures(), sam=NO_SAM, choose="largest")
    [[box]] = boxes
    inside = Box(box["x"], box["y"], box["width"], box["height"])
    assert torch.equal(mask[0], box_shape(inside, (70, 50), is_round=False))
    assert abs(mask.sum() - inside.area) < 0.2 * inside.area + 70


def test_nothing_found(models):
    assert TextDetector("tiny").find(pictures()[0], "hat", 1.0) == []
    none = {"text": "hat", "choose": "index", "index": 900}
    with pytest.raises(ValueError, match=r"picture 1 of 2 does not show 'hat' at threshold 0\.3"):
        mask_of(pictures(2), **none)
    mask, boxes, _ = mask_of(pictures(2), **none, if_nothing="empty mask")
    assert not mask.any() and boxes == [[], []]


# ---- points and boxes ----


def test_sam_masks_are_those_of_the_library(models):
    from segment_anything import SamPredictor

    image = pictures()[0]
    predictor = SamPredictor(
        build_sam(state := torch.load(models / "sams" / "tiny.pth", weights_only=True))
    )
    predictor.model.load_state_dict(state)
    predictor.set_image(as_pixels(image))
    expected, scores, _ = predictor.predict(
        np.array([[10, 20], [40, 60]]), np.array([1, 0]), box=np.array([4, 6, 44, 66])
    )
    mask, *_ = mask_of(
        image[None],
        target="points",
        points="10,20",
        not_points="40,60",
        box="4,6,40,60",
        if_nothing="empty mask",
    )
    assert torch.equal(mask[0], torch.from_numpy(expected[scores.argmax()]).float())


def test_real_sizes_are_read_from_the_checkpoint():
    """The shapes of the published vit_b."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        published = sam_model_registry["vit_b"]()
        ours = build_sam(published.state_dict())
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in published.state_dict().items()
    }
    assert ours.image_encoder.img_size == 1024
    assert [block.window_size for block in ours.image_encoder.blocks] == [
        b.window_size for b in published.image_encoder.blocks
    ]
    assert [b.attn.num_heads for b in ours.image_encoder.blocks] == [
        b.attn.num_heads for b in published.image_encoder.blocks
    ]


def test_typed_and_linked_boxes_are_joined(models):
    linked = [
        [{"x": 0, "y": 0, "width": 10, "height": 10}],
        [{"x": 20, "y": 20, "width": 5, "height": 5, "label": "nose", "score": 0.5}],
    ]
    mask, boxes, _ = mask_of(pictures(2), linked, target="points", sam=NO_SAM, box="30,30,10,10")
    assert [len(found) for found in boxes] == [2, 2]
    assert mask[0, :10, :10].all() and mask[:, 30:40, 30:40].all() and mask[1, 20:25, 20:25].all()
    assert mask.sum((1, 2)).tolist() == [200, 125]


@pytest.mark.parametrize(
    ("boxes", "each"),
    [
        ({"x": 1, "y": 2, "width": 3, "height": 4}, [1, 1]),
        ([{"x": 1, "y": 2, "width": 3, "height": 4}] * 2, [2, 2]),
        ([[{"x": 1, "y": 2, "width": 3, "height": 4}], []], [1, 0]),
        ([[]], [0, 0]),
        ([], [0, 0]),
    ],
)
def test_boxes_of_the_hosts_nodes_are_read(boxes, each):
    assert [len(found) for found in from_host_boxes(boxes, 2)] == each


def test_boxes_for_another_number_of_pictures_are_refused():
    with pytest.raises(ValueError, match="boxes are for 3 pictures, but 2 came"):
        from_host_boxes([[], [], []], 2)


def test_boxes_outside_the_picture(models):
    with pytest.raises(
        ValueError, match="box 60,10 to 80,30 is outside the picture, which is 50x70"
    ):
        mask_of(pictures(), target="points", box="60,10,20,20")
    mask, boxes, _ = mask_of(pictures(), target="points", sam=NO_SAM, box="40,60,100,100")
    assert boxes[0][0] == {"x": 40, "y": 60, "width": 10, "height": 10, "label": "", "score": 1.0}
    assert mask.sum() == 100


def test_points_outside_the_picture(models):
    with pytest.raises(ValueError, match="point 50,5 is outside the picture, which is 50x70"):
        mask_of(pictures(), target="points", points="50,5")


@pytest.mark.parametrize("size", [(1, 1), (2160, 3840)])
def test_from_one_pixel_to_4k(models, size):
    mask, _, overlay = mask_of(
        pictures(1, *size), target="points", box=f"0,0,{size[1]},{size[0]}", if_nothing="empty mask"
    )
    assert mask.shape == (1, *size) and overlay.shape == (1, *size, 3)


# ---- faces ----


class StandIn:
    """In place of cv2.FaceDetectorYN, whose weights this machine does not have: what its `detect`
    returns."""

    def __init__(self, faces: int):
        rows = [[10 + 24 * i, 20, 10 + i % 7, 14, *[0] * 10, 0.9] for i in range(faces)]
        self.rows = np.array(rows, np.float32) if rows else None

    def detect(self, image: np.ndarray):
        self.seen = image
        return 1, self.rows


@pytest.fixture
def yunet(models, monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="tests/requirements.txt brings it")
    file = models / "face_detection" / "yunet.onnx"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"not read by the stand-in")

    def install(faces: int) -> StandIn:
        detector = StandIn(faces)
        monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *args, **options: detector)
        return detector

    return install


def faces_of(image: torch.Tensor, **options: object) -> tuple:
    return mask_of(
        image, **{"target": "face", "face_model": "yunet.onnx", "sam": NO_SAM, **options}
    )


def test_twenty_faces(yunet):
    yunet(20)
    image = pictures(2, 64, 512)
    mask, boxes, overlay = faces_of(image)
    assert [len(found) for found in boxes] == [20, 20]
    assert overlay.shape == image.shape and mask.any((1, 2)).all()
    _, [[largest], _], _ = faces_of(image, choose="largest")
    assert largest["width"] == 16
    _, [[third], _], _ = faces_of(image, choose="index", index=2)
    assert third["x"] == 10 + 24 * 2


def test_no_face(yunet):
    yunet(0)
    with pytest.raises(ValueError, match="picture 1 of 1 does not show a face"):
        faces_of(pictures())
    mask, boxes, _ = faces_of(pictures(), if_nothing="empty mask")
    assert not mask.any() and boxes == [[]]
    mask, _, _ = faces_of(pictures(1, 1, 1), if_nothing="empty mask")
    assert mask.shape == (1, 1, 1)


def test_a_face_is_an_ellipse_and_a_head_is_larger(yunet):
    yunet(1)
    image = pictures(1, 64, 64)
    face, head = faces_of(image)[0], faces_of(image, face_area="head")[0]
    assert abs(face.sum() - 3.1416 / 4 * 10 * 14) < 12
    assert (head >= face).all() and head.sum() > 2 * face.sum()


def test_large_pictures_are_reduced_and_boxes_put_back(yunet):
    detector = yunet(1)
    image = torch.zeros(1, 2048, 1024, 3)
    image[..., 0] = 1
    _, [[box]], _ = faces_of(image)
    assert detector.seen.shape == (1024, 512, 3) and detector.seen[0, 0].tolist() == [
        0,
        0,
        255,
    ], "OpenCV's order is blue, green, red"
    assert (box["x"], box["y"], box["width"], box["height"]) == (20, 40, 20, 28)


def test_sam_shapes_the_faces(yunet):
    yunet(2)
    mask, _, _ = faces_of(pictures(), sam="tiny.pth", if_nothing="empty mask")
    assert mask.shape == (1, 70, 50)


@pytest.fixture
def mediapipe(models) -> Path:
    pytest.importorskip(
        "comfy_extras.nodes_mediapipe", reason="this ComfyUI has no MediaPipe nodes yet: 0.33 has"
    )
    file = models / MEDIAPIPE.name / "tiny_landmarker.safetensors"
    if not file.exists():
        tiny_vision.write_mediapipe(file)
    return file


def bright_cells(*cells: tuple[int, int], side: int = 256) -> torch.Tensor:
    """A dark picture with bright cells (column, row) of the tiny MediaPipe file."""
    cell = tiny_vision.FACE_CELL * side // 128
    image = torch.zeros(1, side, side, 3)
    for x, y in cells:
        image[0, y * cell + 2 : (y + 1) * cell - 2, x * cell + 2 : (x + 1) * cell - 2] = 1
    return image


def test_mediapipe_finds_faces_by_the_hosts_own_nodes(mediapipe):
    from comfy_extras.nodes_mediapipe import LoadMediaPipeFaceLandmarker, MediaPipeFaceLandmarker

    image = torch.cat([bright_cells((1, 2), (5, 4)), bright_cells(), bright_cells((6, 6))])
    mask, boxes, _ = faces_of(image, face_model=mediapipe.name, if_nothing="empty mask")
    host_model = LoadMediaPipeFaceLandmarker.execute(mediapipe.name).args[0]
    expected = MediaPipeFaceLandmarker.execute(host_model, image, "both", 0, 0.3, "empty").args[1]
    order = [sorted(found, key=lambda box: box["x"]) for found in expected]
    assert [[(box["x"], box["y"], box["width"]) for box in found] for found in boxes] == [
        [(box["x"], box["y"], box["width"]) for box in found] for found in order
    ]
    middles = [
        [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in found]
        for found in boxes
    ]
    assert middles == [
        [pytest.approx((48, 80), abs=2), pytest.approx((176, 144), abs=2)],
        [],
        [pytest.approx((208, 208), abs=2)],
    ]
    assert boxes[0][0]["width"] == pytest.approx(60, abs=2)
    assert (
        mask[0, 80, 48] == 1
        and mask[0, 144, 176] == 1
        and mask[0, 80, 176] == 0
        and not mask[1].any()
    )


def test_only_mediapipes_file_counts_as_a_face_model(mediapipe):
    from safetensors.torch import save_file

    save_file({"backbone.weight": torch.zeros(2)}, mediapipe.parent / "other_detector.safetensors")
    (mediapipe.parent / "broken.safetensors").write_bytes(b"not tensors")
    assert [name for name in face_models() if name.endswith(".safetensors")] == [mediapipe.name]


# ---- what is missing ----


def test_every_backend_missing(no_models):
    MagicConceptMask.define_schema()
    image = pictures()
    for options, words in (
        (
            {"target": "text", "sam": NO_SAM, "detector": NO_MODEL},
            ["models/grounding-dino", "grounding-dino-tiny", "huggingface.co"],
        ),
        (
            {"target": "text", "detector": "tiny", "sam": "tiny.pth"},
            ["'tiny.pth' is not among the models in sams", "sam_vit_b_01ec64.pth"],
        ),
        ({"target": "points", "sam": NO_SAM, "points": "1,1"}, ["points need SAM", "models/sams"]),
        ({"target": "face", "sam": NO_SAM}, ["models/face_detection", "yunet"]),
    ):
        with pytest.raises(ValueError) as refused:
            mask_of(image, **options)
        for word in (*words, str(no_models)):
            assert word in str(refused.value)


@pytest.mark.parametrize(
    ("package", "options"), [("segment_anything", {"target": "points", "points": "1,1"})]
)
def test_a_missing_package_is_named(models, monkeypatch, package, options):
    import_module = builtins.__import__

    def without(name: str, *args: object, **keywords: object):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return import_module(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ValueError, match=r"pip install segment-anything, as in the pack's requirements\.txt"
    ):
        mask_of(pictures(), **options)


def test_a_file_that_is_no_sam_is_named(models, use_models, tmp_path):
    use_models(tmp_path)
    (tmp_path / "sams").mkdir()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "sams" / "other.pth")
    (tmp_path / "sams" / "broken.pth").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"'other\.pth' is not a SAM checkpoint"):
        mask_of(pictures(), target="points", points="1,1", sam="other.pth")
    ours = r"^broken\.pth cannot be read as a file of tensors: fetch it again, or take another$"
    with pytest.raises(ValueError, match=ours):
        mask_of(pictures(), target="points", points="1,1", sam="broken.pth")


def test_a_pickle_that_runs_code_is_refused(use_models, tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    use_models(tmp_path)
    (tmp_path / "sams").mkdir()
    torch.save({"image_encoder.pos_embed": Payload()}, tmp_path / "sams" / "evil.pth")
    # Not torch's words, which advise to read it with pickle.
    ours = r"^evil\.pth cannot be read as a file of tensors: fetch it again, or take another$"
    with pytest.raises(ValueError, match=ours):
        mask_of(pictures(), target="points", points="1,1", sam="evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.pth",
        "/etc/passwd",
        "sub/../../secret.pth",
        "link.pth",
        "linked/secret.pth",
        "",
        ".",
    ],
)
@pytest.mark.parametrize(
    "folder", [SAMS, FACE_DETECTORS, DETECTORS], ids=lambda folder: folder.name
)
def test_nothing_outside_the_folder_can_be_read(use_models, tmp_path, name, folder):
    models = use_models(tmp_path / "models")
    (models / folder.name).mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    suffix = folder.suffixes[0] if folder.suffixes else ""
    secret = outside / f"secret{suffix}"
    if suffix:
        secret.write_bytes(b"x")
    else:
        secret.mkdir()
        (secret / "config.json").write_text(json.dumps({"model_type": "grounding-dino"}))
    (models / folder.name / f"link{suffix}").symlink_to(secret)
    (models / folder.name / "linked").symlink_to(outside)
    with pytest.raises(ValueError, match="put "):
        model_folders.path_of(folder, name.replace(".pth", suffix))
    assert model_folders.names(folder) == [] and model_folders.model_directories(folder) == {}


# ---- refinement ----

REFINE = {
    "threshold": 0.5,
    "largest_part": False,
    "fill_holes": False,
    "grow": 0,
    "feather": 0.0,
    "invert": False,
}


def refine(mask: torch.Tensor, **options: object) -> torch.Tensor:
    return MagicMaskRefine.execute(mask, **{**REFINE, **options}).args[0]


def test_holes_and_specks():
    mask = torch.zeros(2, 20, 20)
    mask[0, 4:14, 4:14] = 1
    mask[0, 7:9, 7:9] = 0
    mask[0, 17, 17] = 1
    mask[1, 2, 2:9] = 1
    filled = refine(mask, fill_holes=True)
    assert filled[0].sum() == 101 and torch.equal(filled[1], mask[1])
    largest = refine(mask, largest_part=True, fill_holes=True)
    assert largest[0].sum() == 100 and largest[0, 17, 17] == 0 and torch.equal(largest[1], mask[1])


def test_soft_edges_go_with_their_part():
    mask = torch.zeros(1, 1, 12)
    mask[0, 0] = torch.tensor([0.3, 1, 1, 1, 0.3, 0, 0, 0, 0.3, 1, 0.3, 0])
    kept = refine(mask, threshold=0.0, largest_part=True)
    assert kept[0, 0].tolist() == pytest.approx([0.3, 1, 1, 1, 0.3, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (256, 4096)])
def test_all_or_nothing(size, value):
    mask = torch.full((2, *size), value)
    assert torch.allclose(
        refine(mask, largest_part=True, fill_holes=True, grow=3, feather=2.0), mask, atol=1e-6
    )
    assert torch.allclose(refine(mask, invert=True), 1 - mask)


def test_masks_without_a_batch_and_of_other_types():
    mask = torch.zeros(6, 6, dtype=torch.float16)
    mask[2:4, 2:4] = 1
    assert refine(mask, grow=1).shape == (1, 6, 6)
    assert refine(mask[None, None], grow=1).sum() == 16


# ---- odd input ----

GOOD = {"x": 1, "y": 2, "width": 3, "height": 4}


@pytest.mark.parametrize(
    "box",
    [
        {"x": 1, "y": 2, "width": 3},
        {**GOOD, "x": float("inf")},
        {**GOOD, "y": float("nan")},
        {**GOOD, "width": int("9" * 400)},
        {**GOOD, "height": "tall"},
        {**GOOD, "height": None},
        "box",
        [1, 2, 3],
        5,
    ],
)
def test_boxes_that_are_none_are_named(box):
    for boxes in ([box], [[box]]):
        with pytest.raises(ValueError, match=r"boxes: .* is no box: expected boxes with the numb"):
            from_host_boxes(boxes, 1)


def test_other_types_are_no_boxes():
    for boxes in (5, "12,3", None):
        with pytest.raises(ValueError, match=r"boxes is a .*: expected boxes with the numbers"):
            from_host_boxes(boxes, 1)


def test_boxes_of_odd_detectors_are_read():
    [[box]] = from_host_boxes([{**GOOD, "label": None, "score": None, "more": 1}], 1)
    assert box == Box(1, 2, 3, 4)
    assert from_host_boxes((1, 2, 3, 4), 2) == ((box,), (box,))
    assert from_host_boxes([[(1, 2, 3, 4)], []], 2) == ((box,), ())


@pytest.mark.parametrize(
    "text", ["hat，scarf", "hat、scarf", "hat;scarf", "hat\nscarf", "hat. scarf"]
)
def test_things_are_told_apart_in_every_script(text):
    assert named_things(text) == ["hat", "scarf"]
    assert named_things(" ，。\n") == []


def test_things_in_a_picture_have_no_number_of_words():
    with pytest.raises(ValueError, match=r"'man # 2' has a number.*write 'man', and set choose"):
        mask_of(pictures(), target="text", text="hat, man # 2", sam=NO_SAM)


@pytest.mark.parametrize("name", ["threshold", "grow", "feather"])
def test_a_linked_number_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is nan, expected"):
        refine(torch.ones(1, 4, 4), **{name: float("nan")})


def test_pictures_of_other_shapes_are_refused_with_what_came():
    with pytest.raises(ValueError, match=r"image has the shape \[1, 8, 8, 2\]: expected a batch"):
        mask_of(torch.zeros(1, 8, 8, 2), target="points", sam=NO_SAM, box="1,1,4,4")
    mask, *_ = mask_of(torch.zeros(1, 8, 8, 1), target="points", sam=NO_SAM, box="1,1,4,4")
    assert mask.sum() == 16, "gray is a picture"
