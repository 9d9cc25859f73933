"""CLIP text encoders that can be trained.

The host's own add in place, which back-propagation does not survive. So the same weights, patches
included, are put into transformers' CLIP classes, and what these give is compared with the host's
before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..models.patched_weights import patched_weights
from ..text.clip import encoder_tokenizers, word_ids
from ..text.learned_words import Embedding, host_tokenizer, tokenizer_with
from .lora import ADAPTERS, Adapter, adapter_size, new_adapter

_TOLERANCE = 2e-3
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as token ids.

    text: as it was written. ids: encoder -> 77 ids, those of learned words past the vocabulary.
    positions: where each learned word is (the same in all encoders), -1 for absent.
    """

    text: str
    ids: dict[str, Tensor]
    positions: tuple[int, ...]

    @property
    def word_count(self) -> int:
        """How many of the learned words are in it."""
        return sum(place >= 0 for place in self.positions)


class _Vocabulary(nn.Module):
    """An embedding table whose rows past the vocabulary are the learned words. Only these are
    parameters.

    weight: the table, frozen. rows: the learned words. first: the id of the first of them.
    """

    weight: Tensor

    def __init__(self, table: Tensor, rows: Tensor, first: int):
        super().__init__()
        self.register_buffer("weight", table, persistent=False)
        self.rows = nn.Parameter(rows)
        self.first = first

    def forward(self, ids: Tensor) -> Tensor:
        is_learned = ids >= self.first
        others = nn.functional.embedding(ids.clamp(max=self.first - 1), self.weight)
        return torch.where(
            is_learned[..., None], self.rows[(ids - self.first).clamp(min=0)], others
        )


class TrainableEncoder(nn.Module):
    """One text encoder of a CLIP.

    name: the host's. vocabulary: its table with the learned words. vocabulary_size: words of the
    model's own. adapters: its LoRA, by the host's names of the layers.
    """

    projection: Tensor | None

    def __init__(self, clip: Any, name: str, words: int, device: torch.device):
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        host = getattr(clip.cond_stage_model, name)
        prefix = f"{name}.transformer."
        weights = dict(patched_weights(clip.patcher, prefix))
        table = weights["text_model.embeddings.token_embedding.weight"]
        self.name, self.prefix = name, f"text_encoders.{prefix}"
        self.vocabulary_size = table.shape[0]
        config = cast(Any, CLIPTextConfig)(
            vocab_size=table.shape[0],
            hidden_size=table.shape[1],
            intermediate_size=weights["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=host.num_layers,
            num_attention_heads=host.transformer.text_model.encoder.layers[0].self_attn.heads,
            max_position_embeddings=weights[
                "text_model.embeddings.position_embedding.weight"
            ].shape[0],
            hidden_act=_activation(host.transformer),
            eos_token_id=host.special_tokens["end"],
            attn_implementation="sdpa",
        )
        network: Any = CLIPTextModel(config)
        self.model: nn.Module = network.to(device).requires_grad_(False).eval()
        self._fill(weights)
        self.vocabulary = _Vocabulary(
            table.to(device),
            torch.zeros(words, table.shape[1], device=device),
            self.vocabulary_size,
        )
        network.set_input_embeddings(self.vocabulary)
        projection = weights.get("text_projection.weight")
        self.register_buffer(
            "projection", None if projection is None else projection.to(device), persistent=False
        )
        self.end = host.special_tokens["end"]
        self.layer = _layer(clip, host)
        self.normed = host.layer_norm_hidden_state
        self.adapters: dict[str, Adapter] = {}

    def _fill(self, weights: dict[str, Tensor]) -> None:
        # Newer transformers leave 'text_model.' out of the names.
        own = {key.removeprefix("text_model."): key for key in self.model.state_dict()}
        own_weights = {
            own[key.removeprefix("text_model.")]: value
            for key, value in weights.items()
            if key.removeprefix("text_model.") in own
        }
        own_weights = {
            key: value
            for key, value in own_weights.items()
            if not key.endswith("token_embedding.weight")
        }
        missing = [
            key
            for key in self.model.load_state_dict(own_weights, strict=False).missing_keys
            if not key.endswith(("ids", "token_embedding.weight"))
        ]
        if missing:
            raise RuntimeError(
                f"text encoder {self.name} does not fit transformers' CLIPTextModel: no weights for"
                f" {', '.join(missing[:3])}"
            )

    def add_lora(self, rank: int, generator: torch.Generator, adapter: str = ADAPTERS[0]) -> None:
        """LoRA, or another kind of adapter, on the attention projections, under the names of the
        host's layers."""
        for name, module in self._projections():
            host_name = name if name.startswith("text_model.") else f"text_model.{name}"
            self.adapters[self.prefix + host_name] = new_adapter(adapter, module, rank, generator)

    def lora_size(self, rank: int, kind: str) -> int:
        """Numbers in it."""
        return sum(adapter_size(kind, layer, rank) for _, layer in self._projections())

    def _projections(self) -> Iterator[tuple[str, nn.Linear]]:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in _PROJECTIONS:
                yield name, module

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:  # B 77 -> B 77 C, B P
        output = self.model(input_ids=ids, output_hidden_states=True)
        model: Any = self.model
        norm = getattr(model, "text_model", model).final_layer_norm
        hidden = output.last_hidden_state
        if self.layer is not None:
            hidden = output.hidden_states[self.layer]
            hidden = norm(hidden) if self.normed else hidden
        if self.projection is None:
            return hidden, None
        ends = (ids == self.end).int().argmax(1)
        pooled = output.last_hidden_state[torch.arange(len(ids), device=ids.device), ends]
        return hidden, nn.functional.linear(pooled.float(), self.projection)


class TrainableText:
    """A `TextSide`: all text encoders of a CLIP with the learned words in them.

    encoders: by the host's names. placeholders: the learned words.
    """

    def __init__(self, clip: Any, placeholders: Sequence[str], device: torch.device):
        # Words that the CLIP has learned before stay out of it: a training could not hold them.
        self._host_tokenizer = host_tokenizer(clip.tokenizer)
        self.encoders = {
            name: TrainableEncoder(clip, name, len(placeholders), device)
            for name in encoder_tokenizers(self._host_tokenizer)
        }
        self.placeholders = tuple(placeholders)
        self.device = device
        blank = [
            Embedding(
                word,
                {
                    name: torch.zeros(1, encoder.vocabulary.weight.shape[1])
                    for name, encoder in self.encoders.items()
                },
            )
            for word in placeholders
        ]
        self._tokenizer = tokenizer_with(self._host_tokenizer, blank)
        self._prompts: dict[str, Prompt] = {}

    def prompt(self, text: str) -> Prompt:
        """ValueError when a prompt is longer than one chunk of 77 tokens, or uses weights."""
        if text not in self._prompts:
            positions: list[int] = []
            ids: dict[str, Tensor] = {}
            for name, row in self._tokenizer.single_chunk(text).items():
                words = [-1 - i for i in range(len(self.placeholders))]
                positions = [row.index(word) if word in row else -1 for word in words]
                size = self.encoders[name].vocabulary_size
                ids[name] = torch.tensor([size - 1 - id if id < 0 else id for id in row])
            self._prompts[text] = Prompt(text, ids, tuple(positions))
        return self._prompts[text]

    def encode(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor | None]:
        """B 77 C and, for models that use it, B P. The encoders of SDXL are put side by side; the
        pooled output is the last one's."""
        contexts, pooled = [], None
        for name, encoder in self.encoders.items():
            hidden, pooled = encoder(
                torch.stack([prompt.ids[name] for prompt in prompts]).to(self.device)
            )
            contexts.append(hidden.float())
        return torch.cat(contexts, -1), pooled

    def check_against(self, clip: Any, text: str) -> None:
        """RuntimeError unless this gives what the host's text encoder gives."""
        with torch.inference_mode():
            expected, options = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
        with torch.no_grad():
            hidden, pooled = self.encode([self.prompt(text)])
        pairs = [(hidden, expected)]
        if len(self.encoders) > 1 and pooled is not None:
            pairs.append((pooled, options["pooled_output"]))
        for ours, theirs in pairs:
            theirs = theirs.to(ours)
            error = ((ours - theirs).norm() / theirs.norm()).item()
            if not error < _TOLERANCE:
                raise RuntimeError(
                    f"the trainable text encoder differs from ComfyUI's by {error:.1e} (relative):"
                    " this model's text encoder has a form that MagiCapture does not know, please"
                    " report it"
                )

    @property
    def adapters(self) -> dict[str, Adapter]:
        """Of all encoders."""
        adapters: dict[str, Adapter] = {}
        for encoder in self.encoders.values():
            adapters.update(encoder.adapters)
        return adapters

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Of all encoders."""
        for encoder in self.encoders.values():
            for key, value in encoder.model.state_dict().items():
                yield f"{encoder.name} {key}", value
            # The table is no part of the state: it is the host's.
            yield f"{encoder.name} table", encoder.vocabulary.weight

    @property
    def modules(self) -> list[nn.Module]:
        return list(self.encoders.values())

    @property
    def kept(self) -> list[Tensor]:
        """None: prompts are tokens until they are needed."""
        return []

    def lora_size(self, rank: int, kind: str) -> int:
        """Of all encoders."""
        return sum(encoder.lora_size(rank, kind) for encoder in self.encoders.values())

    @property
    def rows(self) -> list[nn.Parameter]:
        return [encoder.vocabulary.rows for encoder in self.encoders.values()]

    def typical_norms(self, words: Sequence[str]) -> list[float]:
        """For each encoder the mean length of the vectors of some words: about .4 in CLIP-L, the
        value of the official code."""
        norms = []
        for name, encoder in self.encoders.items():
            rows = encoder.vocabulary.weight[word_ids(self._host_tokenizer, name, " ".join(words))]
            norms.append(rows.norm(dim=1).mean().item())
        return norms

    def initialise(
        self,
        words: Sequence[str],
        norms: Sequence[float],
        generator: torch.Generator,
        spread: float | None = None,
    ) -> None:
        """Each learned word starts as the mean of a word's vectors or, where the word is empty, as
        noise: of the length in `norms` or, where given, with the standard deviation `spread`."""
        for (name, encoder), norm in zip(self.encoders.items(), norms, strict=True):
            rows = []
            for word in words:
                if word:
                    ids = word_ids(self._host_tokenizer, name, word)
                    rows.append(encoder.vocabulary.weight[ids].mean(0))
                else:
                    noise = torch.randn(encoder.vocabulary.weight.shape[1], generator=generator)
                    noise = noise / noise.norm() * norm if spread is None else noise * spread
                    rows.append(noise.to(self.device))
            encoder.vocabulary.rows = nn.Parameter(torch.stack(rows).float())

    def learned(self) -> tuple[Embedding, ...]:
        vectors = {
            name: encoder.vocabulary.rows.detach().float().cpu()
            for name, encoder in self.encoders.items()
        }
        return tuple(
            Embedding(word, {name: rows[i : i + 1].clone() for name, rows in vectors.items()})
            for i, word in enumerate(self.placeholders)
        )


def _activation(transformer: Any) -> str:
    import comfy.clip_model

    activation = transformer.text_model.encoder.layers[0].mlp.activation
    return next(
        name for name, function in comfy.clip_model.ACTIVATIONS.items() if function is activation
    )


def _layer(clip: Any, host: Any) -> int | None:
    """Which of the hidden states (the embeddings first) is the conditioning: None for the last one
    after its norm."""
    index = clip.layer_idx
    if index is None:
        _, index, _ = host.options_default
    if index is None or abs(index) > host.num_layers:
        return None
    return int(index) if index < 0 else int(index) + 1
