"""The nodes. One file a family; ids are forever."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .layout import MagicLayoutMasks, MagicSemanticLayout
from .magicapture import (
    MagiCaptureApply,
    MagiCaptureStyle,
    MagiCaptureSubject,
    MagiCaptureTrain,
    MagicEmbeddingLoad,
    MagicEmbeddingSave,
    MagicIdentityLoader,
)
from .magicface import MagicFaceApply, MagicFaceConcept, MagicFaceConceptFolder
from .restore import MagicPortraitRestore
from .toy import MagicToyCapture, MagicToyCheckpoint, MagicToyPortrait

NODES: tuple[type[io.ComfyNode], ...] = (
    MagicFaceConcept,
    MagicFaceConceptFolder,
    MagicFaceApply,
    MagicSemanticLayout,
    MagicLayoutMasks,
    MagicToyCheckpoint,
    MagicToyPortrait,
    MagiCaptureSubject,
    MagiCaptureStyle,
    MagicIdentityLoader,
    MagiCaptureTrain,
    MagiCaptureApply,
    MagicEmbeddingSave,
    MagicEmbeddingLoad,
    MagicPortraitRestore,
    MagicToyCapture,
)


class MagicPortraitExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
