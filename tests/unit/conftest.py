"""Hypothesis draws the same examples in every run: a test of numbers fails because the code
changed, or not at all."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile(
    "magicportrait", max_examples=30, deadline=None, derandomize=True, database=None
)
settings.load_profile("magicportrait")
