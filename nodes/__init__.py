"""The nodes. One file a node or a few that belong together; ids are forever."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from ..host.page.concept_picker import accept_picture_questions
from ..host.page.correspondence_view import accept_questions
from ..host.page.documents import accept_document_questions
from ..host.page.listening_page import accept_listeners
from .analysis import (
    MagicAttentionHeatmap,
    MagicAttentionMap,
    MagicCorrespondence,
    MagicCorrespondenceMap,
)
from .concept_files import MagicConceptLoad, MagicConceptSave
from .concept_folder import MagicFaceConceptFolder
from .concept_lora import MagicConceptLora
from .concept_options import MagicConceptOptions
from .detail import MagicDetailPass
from .edit import MagicEditReference, MagicEditRegions
from .embeddings import MagicEmbeddingLoad, MagicEmbeddingSave
from .identity import MagicIdentityLoader
from .inversion import MagicInversionLoad, MagicInversionSave, MagicStyleInvert
from .layout import MagicLayoutMasks, MagicSemanticLayout
from .layout_conditioning import MagicLayoutConditioning
from .magicapture_apply import MagiCaptureApply
from .magicapture_sets import MagiCaptureStyle, MagiCaptureSubject
from .magicapture_train import MagiCaptureTrain
from .magicface_apply import MagicFaceApply
from .magicface_concept import MagicFaceConcept
from .magicstyle import MagicStyleApply, MagicStyleReference, MagicStyleSampler
from .magicstyle_prompt import MagicStyleEdit, MagicStyleNewPicture
from .masks import MagicConceptMask, MagicMaskRefine
from .metrics import MagicBestOfBatch, MagicCompareGrid, MagicPortraitMetrics
from .portrait_crop import MagicPortraitCrop, MagicPortraitPaste
from .restore import MagicPortraitRestore
from .toy import MagicToyCapture, MagicToyCheckpoint, MagicToyPortrait

NODES: tuple[type[io.ComfyNode], ...] = (
    MagicFaceConcept,
    MagicFaceConceptFolder,
    MagicFaceApply,
    MagicEditReference,
    MagicEditRegions,
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
    MagicConceptMask,
    MagicMaskRefine,
    MagicPortraitMetrics,
    MagicCompareGrid,
    MagicAttentionMap,
    MagicAttentionHeatmap,
    MagicCorrespondence,
    MagicCorrespondenceMap,
    MagiCaptureSubject,
    MagiCaptureStyle,
    MagicIdentityLoader,
    MagiCaptureTrain,
    MagiCaptureApply,
    MagicEmbeddingSave,
    MagicEmbeddingLoad,
    MagicPortraitRestore,
    MagicToyCheckpoint,
    MagicToyPortrait,
    MagicToyCapture,
    MagicConceptLora,
    MagicConceptSave,
    MagicConceptLoad,
    MagicStyleNewPicture,
    MagicStyleEdit,
    MagicLayoutConditioning,
    MagicDetailPass,
    MagicBestOfBatch,
    MagicConceptOptions,
)


class MagicPortraitExtension(ComfyExtension):
    @override
    async def on_load(self) -> None:
        accept_listeners()
        accept_questions()
        accept_picture_questions()
        accept_document_questions()

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
