"""What a user should hear of while a node goes on."""

from __future__ import annotations

import logging

from .listening_page import running_server


def notice(text: str) -> None:
    """Says a sentence in the log and, where the host can, on the node that runs."""
    logging.warning("MagicPortrait: %s", text)
    say_on_node(text)


def say_on_node(text: str) -> None:
    """Says a sentence on the node that runs, where the host can."""
    from comfy_execution.utils import get_executing_context

    server, context = running_server(), get_executing_context()
    if context is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, context.node_id)
