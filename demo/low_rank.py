"""What the edit variant of the transformer toy adds to the shipped weights: low-rank changes of the
blocks' matrices, and vectors for the words that say which reference is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import TEXT_CONFIG
from .transformer import ToyTransformer

RANK = 32
_WORDS = "words"
_DOWN, _UP = ".down", ".up"


class LowRank(nn.Module):
    """A change of a matrix of `columns` x `rows` (inputs x outputs) by a product; none at first."""

    def __init__(self, columns: int, rows: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, columns) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up)


class EditAdapter(nn.Module):
    """The trained part of the edit variant, put onto a frozen `ToyTransformer` by hooks.
    word_rows: the rows of the model's vocabulary that get new vectors."""

    def __init__(self, model: ToyTransformer, word_rows: Sequence[int], rank: int = RANK) -> None:
        super().__init__()
        model.requires_grad_(False)
        names = _adapted(model.transformer)
        linears = [model.transformer.get_submodule(name) for name in names]
        # Names of submodules have no dots.
        self.changes = nn.ModuleDict(
            {
                name.replace(".", "/"): LowRank(linear.in_features, linear.out_features, rank)
                for name, linear in zip(names, linears, strict=True)
                if isinstance(linear, nn.Linear)
            }
        )
        self.words = nn.Parameter(torch.randn(len(word_rows), TEXT_CONFIG["hidden_size"]) * 0.2)
        table = model.text_encoder.token_embedding
        word_of = torch.zeros(len(table.weight), dtype=torch.long)
        word_of[list(word_rows)] = torch.arange(1, len(word_rows) + 1)
        with torch.no_grad():
            table.weight[list(word_rows)] = 0
        for linear, change in zip(linears, self.changes.values(), strict=True):
            linear.register_forward_hook(
                lambda _, inputs, output, change=change: output + change(inputs[0])
            )
        table.register_forward_hook(
            lambda _, inputs, output: (
                output
                + F.embedding(
                    word_of.to(inputs[0].device)[inputs[0]], F.pad(self.words, (0, 0, 1, 0))
                )
            )
        )

    def tensors(self) -> dict[str, Tensor]:
        """As `merge` takes them: 'NAME.down' R in and 'NAME.up' out R of every changed matrix, and
        'words' W C."""
        state = {name: tensor.detach() for name, tensor in self.changes.state_dict().items()}
        named = {name.replace("/", "."): tensor for name, tensor in state.items()}
        return {**named, _WORDS: self.words.detach()}


def _adapted(transformer: nn.Module) -> list[str]:
    """Names of the matrices of the blocks, but those of the modulation."""
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and "blocks." in name
        and not name.endswith((".lin", "modulation"))
    ]


def reduced(change: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The nearest change of a smaller rank, by singular values. change: as of
    `EditAdapter.tensors`."""
    out = dict(change)
    for name, down in change.items():
        if not name.endswith(_DOWN):
            continue
        other = name.removesuffix(_DOWN) + _UP
        left, sizes, right = torch.linalg.svd(
            change[other].double() @ down.double(), full_matrices=False
        )
        root = sizes[:rank].sqrt()
        out[name] = (root[:, None] * right[:rank]).float().contiguous()
        out[other] = (left[:, :rank] * root).float().contiguous()
    return out


def merge(
    transformer: Mapping[str, Tensor], text: Mapping[str, Tensor], change: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the transformer and of the text encoder with the change in them. change: as
    `EditAdapter.tensors`, with 'word_ids' W, the tokens of the words, in place of their rows."""
    merged = dict(transformer)
    for name, down in change.items():
        if not name.endswith(_DOWN):
            continue
        layer = name.removesuffix(_DOWN)
        matrix = f"{layer}.weight"
        product = change[layer + _UP].float() @ down.float()
        merged[matrix] = transformer[matrix].float() + product
    rows, ids = text["token_embedding.weight"], text["token_ids"]
    words = {
        "token_embedding.weight": torch.cat([rows, change[_WORDS].to(rows)]),
        "token_ids": torch.cat([ids, change["word_ids"].to(ids)]),
    }
    return merged, {**text, **words}
