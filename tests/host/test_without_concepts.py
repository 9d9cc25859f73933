"""MagicFace Apply with nothing to take: the plain prompt."""

from __future__ import annotations

import torch

from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicface_apply import MagicFaceApply
from magicportrait.tests.host.sampling import PROMPT, encode, parts


def test_without_concepts_the_model_and_the_prompt_are_plain() -> None:
    model, clip, vae = parts()
    options = {**defaults_of(MagicFaceApply), "prompt": PROMPT}

    patched, positive, layout = MagicFaceApply.execute(model, clip, vae, **options).args

    assert patched is model
    [[plain, extra]] = encode(PROMPT)
    [[drawn, own]] = positive
    assert torch.equal(drawn, plain) and own.keys() == extra.keys()
    assert layout.message is None, "what asks for the layout does not run"
