"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum, orthogonalised. It needs
about half of Adam's steps here.

torch.optim.Muon takes matrices only; convolutions count as matrices of shape out x (in * kernel)
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix with singular values around 1, by the quintic Newton-Schulz iteration of
    the reference above."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Muon for weights with two dimensions or more; give biases, norms and embeddings to AdamW
    (`split_parameters`). In a process group each process orthogonalises its share of the matrices
    and all get all updates; gradients must be the same everywhere."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        shared = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if shared else 0
        workers = torch.distributed.get_world_size() if shared else 1
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = []
            for i, parameter in enumerate(parameters):
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                if i % workers == rank:
                    ahead = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                    scale = max(1, ahead.shape[0] / ahead.shape[1]) ** 0.5
                    updates.append((orthogonalise(ahead) * scale).flatten())
                else:
                    updates.append(parameter.new_zeros(parameter.numel()))
            if workers > 1:
                flat = torch.cat(updates)
                torch.distributed.all_reduce(flat)
                updates = list(flat.split([len(update) for update in updates]))
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.add_(update.view_as(parameter), alpha=-group["lr"])


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(for Muon, for AdamW): hidden matrices, and all the rest. Embeddings are matrices that are
    looked up, not multiplied."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    for_muon = {id(p) for p in matrices}
    return matrices, [p for p in trained if id(p) not in for_muon]
