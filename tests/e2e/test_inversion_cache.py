"""Inversions are remembered: across runs, and across servers that share a user directory."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import dev
from comfy_server import ComfyServer, Result
from workflow_files import Prompt, ids, prompt_of

STEPS = 3


def inversion(object_info: dict[str, Any], **changes: Any) -> Prompt:
    """The portrait of a workflow inverted, with its report."""
    prompt = prompt_of("magicstyle_portrait", object_info, outputs={"PreviewAny"}, steps=STEPS, **changes)
    [shown] = [prompt[node]["inputs"]["source"][0] for node in ids(prompt, "PreviewAny")]
    return {node: data for node, data in prompt.items() if node == shown or data["class_type"] != "MagicStyleInvert"}


def report(result: Result) -> str:
    [text] = [line for output in result.outputs.values() for line in output.get("text", [])]
    assert isinstance(text, str)
    return text


def test_second_run_calls_no_model(server: ComfyServer, object_info: dict[str, Any], tmp_path: Path) -> None:
    first = server.queue(inversion(object_info))

    # The host would not even run the node again if nothing had changed.
    again = server.queue(inversion(object_info, cache_mb=300))
    other = server.queue(inversion(object_info, iterations=3, cache_mb=300))

    assert first.steps == 2 * STEPS, "once up, and once down to measure"
    assert "from the cache" not in report(first)
    assert again.executed and again.steps == 0
    assert "from the cache: none now" in report(again)
    assert report(again).splitlines()[2:] == report(first).splitlines()[2:]
    assert other.steps == 2 * STEPS

    shutil.copytree(server.base / "user", tmp_path / "user", ignore=shutil.ignore_patterns("*.db*"))
    with ComfyServer(dev.find_comfyui(), Path(sys.executable), tmp_path, cpu=True) as started:
        after_a_restart = started.queue(inversion(object_info))
    assert after_a_restart.executed and after_a_restart.steps == 0
    assert report(after_a_restart) == report(again)
