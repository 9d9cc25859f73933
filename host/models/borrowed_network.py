"""A network of another library on the host's device, under the host's memory management."""

from __future__ import annotations

from typing import Any

import torch


class BorrowedNetwork:
    """Moves a network to the device when it is used. Its memory goes when this object does, or
    earlier when the host needs it.

    memory: bytes that it works in, beside its weights.
    """

    def __init__(self, network: torch.nn.Module, memory: float = 2 * 1024**3):
        import comfy.model_management as management
        import comfy.model_patcher

        self.device, self._memory = management.get_torch_device(), memory
        # The host sets attributes of its own, such as 'device', which other libraries' networks
        # refuse: hence the holder.
        holder = torch.nn.Sequential(network.eval())
        self._patcher = comfy.model_patcher.ModelPatcher(
            holder, load_device=self.device, offload_device=torch.device("cpu")
        )

    def on_device(self) -> Any:
        """The network, ready to run."""
        import comfy.model_management as management

        # In parts the host loads only layers of its own; and with --novram it loads none.
        management.load_models_gpu(
            [self._patcher], memory_required=self._memory, force_full_load=True
        )
        return self._patcher.model[0].to(self.device)
