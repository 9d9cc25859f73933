"""A real ComfyUI for the tests in this folder: queues prompts, follows them to their end and
fetches the pictures."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from devkit.client import ExecutionFailed, Picture, Result, ValidationFailed
from devkit.server import Server

__all__ = ["ComfyServer", "ExecutionFailed", "Picture", "Result", "ValidationFailed"]


class ComfyServer(Server):
    def restart(self) -> None:
        """Ends it and starts it again with the same folders and on the same port."""
        self.stop()
        self.__enter__()

    def queue(self, prompt: dict[str, Any], timeout: float = 600.0) -> Result:
        """Runs an API prompt to its end. `timeout` is the longest silence, in seconds."""
        return self.run(prompt, silence=timeout)

    def fetch_image(self, picture: Picture) -> Image.Image:
        image = Image.open(io.BytesIO(self.fetch(picture)))
        image.load()
        return image
