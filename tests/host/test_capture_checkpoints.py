"""Checkpoints of MagiCapture's trainings: whose they are, what is wrong with one, and what happens
when none can be written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from magicportrait.host.faces.identity import Identity
from magicportrait.host.models import safe_files
from magicportrait.host.training.checkpoint import CHECKPOINTS_IN_FOLDER, CheckpointFile
from magicportrait.host.training.run import CaptureTraining
from magicportrait.magic.capture_sets import CapturePicture, StyleSet, Subject
from magicportrait.tests.host.test_magicapture import (
    QUICK,
    ignore,
    models_of,
    recogniser,
    sets,
    step,
    train_in_one_go,
    training,
)


def fingerprint(
    subject: Subject | None = None, style: StyleSet | None = None, identity: Identity | None = None
) -> str:
    pictures = sets()
    settings = replace(QUICK, versions=1)
    run = CaptureTraining(
        *models_of(), subject or pictures[0], style or pictures[1], identity, settings
    )
    return run.fingerprint


@cache
def usual() -> str:
    """Of the same inputs for all tests."""
    return fingerprint()


def cancel_after(count: int) -> Callable[[int, float], None]:
    def cancel(done: int, loss: float) -> None:
        if done == count:
            raise KeyboardInterrupt

    return cancel


# ---- whose it is ----

CHANGES: dict[str, Callable[[CapturePicture], CapturePicture]] = {
    "mirrored": lambda picture: replace(picture, image=picture.image.flip(1)),
    "turned": lambda picture: replace(picture, image=picture.image.transpose(0, 1)),
    "shuffled": lambda picture: replace(picture, image=picture.image.flip(2)),
    "its mask moved": lambda picture: replace(picture, mask=picture.mask.roll(2, 0)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("part", [0, 1], ids=["subject", "style"])
def test_a_changed_picture_is_another_training(change, part):
    pictures = list(sets())
    first, *others = pictures[part].pictures
    pictures[part] = replace(pictures[part], pictures=(change(first), *others))
    assert fingerprint(*pictures) != usual()


def test_the_same_inputs_are_the_same_training():
    again = (
        replace(part, pictures=tuple(copy_of(picture) for picture in part.pictures))
        for part in sets()
    )
    assert fingerprint(*again) == usual()


def copy_of(picture: CapturePicture) -> CapturePicture:
    return replace(picture, image=picture.image.clone(), mask=picture.mask.clone())


def test_another_identity_network_is_another_training():
    names = []
    for factor in (1.0, -1.0):
        identity = recogniser()
        identity.network.weight.mul_(factor)
        names.append(fingerprint(identity=identity))
    identity = recogniser()
    identity.network.weight.copy_(identity.network.weight.flip(-1))
    names.append(fingerprint(identity=identity))
    assert len({*names, usual()}) == 4


def test_another_word_in_the_text_encoder_s_table_is_another_training(monkeypatch):
    before = usual()
    clip = models_of()[1]
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    rows = table[[5, 6]].clone()
    try:
        table[[5, 6]] = rows.flip(0)
        assert fingerprint() != before
    finally:
        table[[5, 6]] = rows


# ---- two servers with one folder ----


def test_a_second_writer_in_the_same_moment_ends_neither(tmp_path, monkeypatch):
    run = training()
    step(run)
    file = CheckpointFile(tmp_path / "state.pt", 1)
    replace_file, calls = os.replace, []

    def interrupt(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 1:
            assert file.write(run.state())
        replace_file(source, target)

    monkeypatch.setattr(safe_files.os, "replace", interrupt)
    assert file.write(run.state())
    assert len(calls) == 2 and [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert file.read(run.fingerprint) is not None


# ---- damaged ones ----


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {key: value for key, value in content.items() if key != name}


def with_value(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {**content, name: value}


def with_bad_moments(content: dict[str, Any]) -> dict[str, Any]:
    for memory in content["optimizer"]["state"].values():
        memory["exp_avg"] = torch.zeros(3)
    return content


def with_numbers_that_are_none(content: dict[str, Any]) -> dict[str, Any]:
    content["rows"][0][0, 0] = float("nan")
    return content


DAMAGES = {
    "no table": lambda content: [1, 2],
    "no step": without("step"),
    "no terms": without("terms"),
    "a step in words": with_value("step", "two"),
    "a step that is a truth": with_value("step", True),
    "a step beyond the end": with_value("step", 1000),
    "a step before the start": with_value("step", -1),
    "another phase": with_value("phase", 1),
    "no phase": with_value("phase", 7),
    "too few losses": with_value("history", [1.0]),
    "losses in words": with_value("history", ["a", "b"]),
    "terms in words": with_value("terms", {"0 reconstruction": ["a"]}),
    "terms that are a list": with_value("terms", [1.0]),
    "one time": with_value("seconds", [1.0]),
    "a generator of another kind": with_value("generator", torch.zeros(3)),
    "no rows": with_value("rows", []),
    "rows of another shape": with_value("rows", [torch.zeros(1, 5)]),
    "rows that are numbers": with_value("rows", [1.0]),
    "numbers that are none": with_numbers_that_are_none,
    "adapters that are no pairs": with_value("adapters", [torch.zeros(1)]),
    "an empty optimizer": with_value("optimizer", {}),
    "moments of another shape": with_bad_moments,
}


@pytest.fixture(scope="module")
def after_two_steps(tmp_path_factory) -> bytes:
    """A whole checkpoint."""
    with torch.inference_mode():
        run = training()
        for _ in range(2):
            step(run)
        file = CheckpointFile(tmp_path_factory.mktemp("whole") / "state.pt", 100)
        assert file.write(run.state())
    return file.path.read_bytes()


@pytest.fixture(scope="module")
def beginner() -> CaptureTraining:
    """A training that takes up what it is given, if it can."""
    with torch.inference_mode():
        return training()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_one_sentence_with_its_name(
    tmp_path, damage, after_two_steps, beginner
):
    file = CheckpointFile(tmp_path / "0123456789abcdef.pt", 100)
    file.path.write_bytes(after_two_steps)
    torch.save(damage(torch.load(file.path, weights_only=True)), file.path)
    with pytest.raises(
        ValueError, match=r"^checkpoint \S+0123456789abcdef\.pt is damaged"
    ) as error:
        beginner.run(ignore, file)
    text = str(error.value)
    assert text.endswith("remove it to start anew") and "\n" not in text
    assert file.path.exists(), "it is the user's to remove"


# ---- trainings that are given up ----


def test_of_trainings_that_were_given_up_the_last_few_stay(tmp_path, caplog):
    caplog.set_level("INFO")
    names = [f"{number:016x}.pt" for number in range(CHECKPOINTS_IN_FOLDER + 2)]
    for age, name in enumerate(reversed(names)):
        (tmp_path / name).write_bytes(b"older")
        os.utime(tmp_path / name, (1_000_000_000 - age, 1_000_000_000 - age))
    (tmp_path / "notes.pt").write_bytes(b"not ours")
    file = CheckpointFile(tmp_path / "ffffffffffffffff.pt", 100)
    with pytest.raises(KeyboardInterrupt):
        training().run(cancel_after(2), file)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"ffffffffffffffff.pt", "notes.pt", *names[-(CHECKPOINTS_IN_FOLDER - 1) :]}
    assert f"stopped after step 2, kept in {file.path}" in caplog.text


def test_a_training_that_runs_removes_no_others(tmp_path):
    for number in range(CHECKPOINTS_IN_FOLDER + 2):
        (tmp_path / f"{number:016x}.pt").write_bytes(b"older")
    training().run(ignore, CheckpointFile(tmp_path / "ffffffffffffffff.pt", 2))
    assert len(list(tmp_path.iterdir())) == CHECKPOINTS_IN_FOLDER + 2


# ---- a disk that takes none ----

needs_unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")


@pytest.fixture
def limit_files() -> Iterator[Callable[[], None]]:
    """Files may have so many bytes, as with `ulimit -f`; the value lifts the limit."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield lift
    lift()


@needs_unix
def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(
    tmp_path, caplog, limit_files
):
    result = training().run(ignore, CheckpointFile(tmp_path / "state.pt", 2))
    assert result.history == train_in_one_go().history
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings and all("no checkpoint could be kept" in text for text in warnings)
    assert "larger than one file may be there" in warnings[0]
    # One before the first step, and one for each checkpoint that was due.
    assert len(warnings) == 1 + QUICK.steps // 2
    assert not list(tmp_path.iterdir()), "nothing half is left"


@needs_unix
def test_the_next_checkpoint_is_tried_again(tmp_path, caplog, limit_files):
    def make_room(done: int, loss: float) -> None:
        if done == 3:
            limit_files()
        if done == 5:
            raise KeyboardInterrupt

    file = CheckpointFile(tmp_path / "state.pt", 2)
    run = training()
    with pytest.raises(KeyboardInterrupt):
        run.run(make_room, file)
    state = file.read(run.fingerprint)
    assert state is not None and state.step == 5
    resumed = training().run(ignore, file)
    assert resumed.history == train_in_one_go().history


@needs_unix
def test_a_cancel_stays_a_cancel_where_nothing_can_be_kept(tmp_path, limit_files):
    with pytest.raises(KeyboardInterrupt):
        training().run(cancel_after(2), CheckpointFile(tmp_path / "state.pt", 100))


def test_the_folder_is_tried_before_the_first_step(tmp_path, caplog):
    (tmp_path / "magicapture").write_text("a file where the folder should be")
    steps: list[int] = []

    def first(done: int, loss: float) -> None:
        steps.append(done)
        assert "no checkpoint could be kept" in caplog.text
        assert "there is a file where a folder is needed" in caplog.text
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training().run(first, CheckpointFile(tmp_path / "magicapture" / "state.pt", 100))
    assert steps == [1]


def test_a_disk_with_too_little_room_is_said_before_the_first_step(tmp_path, caplog, monkeypatch):
    from magicportrait.host.training import checkpoint

    usage = checkpoint.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    CheckpointFile(tmp_path / "state.pt", 100).try_folder(5 * 2**20)
    assert "it takes 5 MB, and the disk has 0 MB left" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_another_server_has_just_removed_is_none(tmp_path: Path):
    assert CheckpointFile(tmp_path / "state.pt", 1).read("anything") is None
