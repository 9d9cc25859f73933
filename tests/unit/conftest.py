"""Hypothesis draws the same examples in every run, but for numbers that stand in the modules which
are loaded by then, and takes the time it needs."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "magicportrait",
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("magicportrait")
