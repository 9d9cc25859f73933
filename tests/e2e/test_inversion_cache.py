"""Inversions are remembered, also after a restart. The server of the tests has a user directory of
its own."""

from __future__ import annotations

from typing import Any

from comfy_server import ComfyServer, Result
from workflow_files import Prompt, ids, prompt_of

STEPS = 3


def inversion(object_info: dict[str, Any], **changes: Any) -> Prompt:
    """The portrait of a workflow inverted, with its report."""
    prompt = prompt_of(
        "MagicStyle-2-step-by-step", object_info, outputs={"PreviewAny"}, steps=STEPS, **changes
    )
    [shown] = [prompt[node]["inputs"]["source"][0] for node in ids(prompt, "PreviewAny")]
    return {
        node: data
        for node, data in prompt.items()
        if node == shown or data["class_type"] != "MagicStyleInvert"
    }


def report(result: Result) -> str:
    [text] = [line for output in result.outputs.values() for line in output.get("text", [])]
    assert isinstance(text, str)
    return text


def test_the_same_inversion_again_calls_no_model(
    server: ComfyServer, object_info: dict[str, Any]
) -> None:
    first = server.queue(inversion(object_info))
    # The host would not even run the node again if nothing had changed.
    again = server.queue(inversion(object_info, cache_mb=300))
    other = server.queue(inversion(object_info, iterations=3, cache_mb=300))

    server.restart()
    after_the_restart = server.queue(inversion(object_info))

    assert first.steps and other.steps
    assert "from the cache" not in report(first)
    for result in (again, after_the_restart):
        assert result.executed and result.steps == 0
        assert "from the cache: none now" in report(result)
        assert report(result).splitlines()[2:] == report(first).splitlines()[2:]
