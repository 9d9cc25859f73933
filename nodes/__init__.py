"""The nodes. One file a family; ids are forever."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from ..host.audience import accept_listeners
from .inversion import MagicInversionLoad, MagicInversionSave, MagicStyleInvert
from .layout import MagicLayoutMasks, MagicSemanticLayout
from .magicface import MagicFaceApply, MagicFaceConcept, MagicFaceConceptFolder
from .magicstyle import MagicStyleApply, MagicStyleReference, MagicStyleSampler
from .portrait_crop import MagicPortraitCrop, MagicPortraitPaste
from .toy import MagicToyCheckpoint, MagicToyPortrait

NODES: tuple[type[io.ComfyNode], ...] = (
    MagicFaceConcept,
    MagicFaceConceptFolder,
    MagicFaceApply,
    MagicSemanticLayout,
    MagicLayoutMasks,
    MagicStyleInvert,
    MagicInversionSave,
    MagicInversionLoad,
    MagicStyleReference,
    MagicStyleApply,
    MagicStyleSampler,
    MagicPortraitCrop,
    MagicPortraitPaste,
    MagicToyCheckpoint,
    MagicToyPortrait,
)


class MagicPortraitExtension(ComfyExtension):
    @override
    async def on_load(self) -> None:
        accept_listeners()

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
