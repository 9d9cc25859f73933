"""Learned words for the text encoders of transformers (CLIP, T5, language models): the host's own
modules in a form that passes gradients to the rows of the words.

A copy of the modules holds the weights, patches included. What it gives is compared with the host's
before anything is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..models.patched_weights import patched_weights
from ..text.clip import list_name, loaded_encoders, vocabulary_ids, word_width
from ..text.context import ContextTokens
from ..text.learned_words import Embedding, host_tokenizer, with_learned_words
from ..text.prompts import encode
from .encoded_text import EncodedPrompt, encoded_prompt
from .flow import copy_for_norms
from .lora import Adapter

_TOLERANCE = 2e-3
_HALF_TOLERANCE = 5e-2
"""Relative, in half precision."""
_OF_A_PLACE = ("_v", "_pin", "_prefetch", "_comfy", "weight_", "bias_")
"""How what a layer of the host remembers of where its weights are, and of how they are patched,
begins."""


@dataclass(frozen=True, eq=False)
class LearnedPrompt:
    """A prompt as tokens.

    encoded: as it was encoded with the words of the beginning. tokens: the lists of the host's
    tokenizer, in which a learned word is a `_Row`.
    """

    encoded: EncodedPrompt
    tokens: Mapping[str, Any]

    @property
    def text(self) -> str:
        return self.encoded.text

    @property
    def word_count(self) -> int:
        return self.encoded.word_count


@dataclass(frozen=True)
class _Row:
    """Which word of which text encoder."""

    encoder: str
    word: int


class LearnedText:
    """A `TextSide`: the text encoders of a transformer with learned words in them. Nothing else of
    them is trained.

    placeholders: the learned words.
    """

    def __init__(
        self,
        clip: Any,
        placeholders: Sequence[str],
        context: ContextTokens,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.placeholders = tuple(placeholders)
        self.device = device
        self._dtype, self._context = dtype, context
        # Words that the CLIP has learned before stay out of it: a training could not hold them.
        self._clip = clip.clone()
        self._clip.tokenizer = host_tokenizer(clip.tokenizer)
        self._layer = clip.layer_idx
        weights = dict(patched_weights(clip.patcher, ""))
        self._network = _copy_of(clip.cond_stage_model, weights, "", device, dtype)
        copy_for_norms(self._network)
        self._names = loaded_encoders(clip)
        widths = {name: word_width(clip, name) for name in self._names}
        self._rows = {
            name: nn.Parameter(torch.zeros(len(placeholders), width, device=device))
            for name, width in widths.items()
        }
        # By these the words are known again among the tokens.
        generator = torch.Generator().manual_seed(0)
        self._marks = [
            {name: torch.randn(1, width, generator=generator) for name, width in widths.items()}
            for _ in placeholders
        ]
        embeddings = [Embedding(*pair) for pair in zip(placeholders, self._marks, strict=True)]
        self._clip_with_marks = with_learned_words(self._clip, embeddings)
        self._prompts: dict[str, LearnedPrompt] = {}

    @property
    def rows(self) -> list[nn.Parameter]:
        return [*self._rows.values()]

    @property
    def adapters(self) -> dict[str, Adapter]:
        """None."""
        return {}

    @property
    def modules(self) -> list[nn.Module]:
        return [self._network]

    @property
    def kept(self) -> list[Tensor]:
        return [tensor for prompt in self._prompts.values() for tensor in prompt.encoded.tensors]

    def lora_size(self, rank: int, kind: str) -> int:
        """None."""
        return 0

    def prompt(self, text: str) -> LearnedPrompt:
        """ValueError, of which prompt, when its encoding is no numbers."""
        if text not in self._prompts:
            encoded = encoded_prompt(self._clip_with_marks, text, self.placeholders, self._context)
            lists: dict[str, Any] = self._clip_with_marks.tokenize(text)
            tokens = {
                name: [
                    [(self._token(name, first), *rest) for first, *rest in chunk]
                    for chunk in chunks
                ]
                for name, chunks in lists.items()
            }
            self._prompts[text] = LearnedPrompt(encoded, tokens)
        return self._prompts[text]

    def _token(self, list_of: str, token: Any) -> Any:
        vector = token.get("data") if isinstance(token, dict) else token
        if not isinstance(vector, Tensor):
            return token
        encoder = next((name for name in self._names if list_name(name) == list_of), "")
        for word, marks in enumerate(self._marks):
            if encoder in marks and torch.equal(marks[encoder][0], vector):
                return _Row(encoder, word)
        return token

    def encode(self, prompts: Sequence[LearnedPrompt]) -> Sequence[EncodedPrompt]:
        """Each for itself: their lengths differ."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: LearnedPrompt) -> EncodedPrompt:
        def own(token: Any) -> Any:
            return self._rows[token.encoder][token.word] if isinstance(token, _Row) else token

        tokens = {
            name: [[(own(first), *rest) for first, *rest in chunk] for chunk in chunks]
            for name, chunks in prompt.tokens.items()
        }
        context, options = self._run(tokens)
        before = prompt.encoded
        return EncodedPrompt(before.text, context, {**before.options, **options}, before.spans)

    def _run(self, tokens: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Context and all else of a conditioning, with gradients."""
        network: Any = self._network
        network.reset_clip_options()
        if self._layer is not None:
            network.set_clip_options({"layer": self._layer})
        network.set_clip_options({"execution_device": self.device})
        half = self._dtype != torch.float32
        with _Anew(), torch.autocast(self.device.type, self._dtype, enabled=half):
            context, pooled, *more = network.encode_token_weights(tokens)
        options = {"pooled_output": pooled}
        for table in more:
            options.update(table)
        return context, options

    def check_against(self, text: str) -> None:
        """RuntimeError unless this gives what the host's text encoders give."""
        with torch.inference_mode():
            expected, options = encode(self._clip, text)[0]
        with torch.no_grad():
            context, own = self._run(self._clip.tokenize(text))
        # HiDream reads a language model beside the context.
        pairs = [(context, expected)]
        pairs += [
            (value, options[name])
            for name, value in own.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        ]
        limit = _TOLERANCE if self._dtype == torch.float32 else _HALF_TOLERANCE
        for ours, theirs in pairs:
            theirs = theirs.to(ours)
            error = ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()
            if ours.shape != theirs.shape or not error < limit:
                raise RuntimeError(
                    f"the trainable text encoder differs from ComfyUI's by {error:.1e} (relative):"
                    " set words to 'trigger words', and please report it"
                )

    def typical_norms(self, words: Sequence[str]) -> list[float]:
        """For each text encoder the mean length of the vectors of some words."""
        return [
            torch.cat([self._vectors(name, word) for word in words]).norm(dim=1).mean().item()
            for name in self._names
        ]

    def initialise(
        self, words: Sequence[str], norms: Sequence[float], generator: torch.Generator
    ) -> None:
        """Each learned word starts as the mean of a word's vectors or, where the word is empty, as
        noise of the length in `norms`."""
        with torch.no_grad():
            for name, norm in zip(self._names, norms, strict=True):
                for number, word in enumerate(words):
                    if word:
                        row = self._vectors(name, word).mean(0)
                    else:
                        noise = torch.randn(self._rows[name].shape[1], generator=generator)
                        row = noise / noise.norm() * norm
                    self._rows[name][number].copy_(row)

    def _vectors(self, name: str, word: str) -> Tensor:
        """As the encoder is given them: N C."""
        network: Any = getattr(self._network, name)
        ids = torch.tensor([vocabulary_ids(self._clip.tokenizer, name, word)], device=self.device)
        with torch.no_grad():
            table = network.transformer.get_input_embeddings()
            vectors: Tensor = table(ids, out_dtype=torch.float32)[0]
        return vectors

    def learned(self) -> tuple[Embedding, ...]:
        vectors = {name: rows.detach().float().cpu() for name, rows in self._rows.items()}
        return tuple(
            Embedding(word, {name: rows[i : i + 1].clone() for name, rows in vectors.items()})
            for i, word in enumerate(self.placeholders)
        )

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Of the text encoders with their patches."""
        for name, weight in patched_weights(self._clip.patcher, ""):
            yield f"text {name}", weight


class _Anew(TorchFunctionMode):
    """While it is open no function writes into a tensor that it is given for its result, which
    gradients do not pass: the layers of language models return what they write so."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "out"}
        return function(*args, **kwargs)


def _copy_of(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    prefix: str,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """A module of the host with frozen weights of its own, matrices in dtype. weights: by their
    names in the whole."""
    if f"{prefix}weight" in weights and hasattr(module, "in_features"):
        return _linear(weights[f"{prefix}weight"], weights.get(f"{prefix}bias"), device, dtype)
    own = copy.copy(module)
    state = own.__dict__
    for name in [name for name in state if name.startswith(_OF_A_PLACE)]:
        del state[name]
    # Those of the copy are its own.
    state.update({name: copy.copy(value) for name, value in state.items() if "_hooks" in name})
    if hasattr(own, "comfy_cast_weights"):
        state["comfy_cast_weights"] = False

    def read(name: str, value: Tensor | None) -> Tensor | None:
        value = weights.get(f"{prefix}{name}", value)
        if value is None:
            return None
        matrix = value.is_floating_point() and value.ndim > 1
        return value.detach().to(device, dtype if matrix else None, copy=True)

    parameters = {name: read(name, value) for name, value in module._parameters.items()}
    state["_parameters"] = {
        name: None if value is None else nn.Parameter(value, requires_grad=False)
        for name, value in parameters.items()
    }
    state["_buffers"] = {name: read(name, value) for name, value in module._buffers.items()}
    state["_modules"] = {
        name: None if part is None else _copy_of(part, weights, f"{prefix}{name}.", device, dtype)
        for name, part in module._modules.items()
    }
    return own.eval()


def _linear(
    weight: Tensor, bias: Tensor | None, device: torch.device, dtype: torch.dtype
) -> nn.Linear:
    """torch's own, whatever form the host keeps the weight in."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.to(device, dtype, copy=True), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(device, dtype, copy=True), requires_grad=False)
    return layer
