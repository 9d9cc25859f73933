"""Load Identity Network: a network that tells faces apart."""

from __future__ import annotations

from comfy_api.latest import io

from ..demo import face_network
from ..host.faces import identity
from ..host.faces.identity import Identity, list_files, load_identity
from .declare import IdentityType, schema
from .inputs import Node

TOY_IDENTITY = "toy (comes with the pack)"


class MagicIdentityLoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicIdentityLoader",
            display_name="Load Identity Network",
            category="MagicPortrait/MagiCapture",
            description=(
                "A network that tells faces apart, for the identity loss: ArcFace or AdaFace"
                " weights from models/face_identity or models/insightface (safetensors, or onnx"
                " with the optional package onnx2torch)."
            ),
            search_aliases=[
                "arcface",
                "adaface",
                "insightface",
                "face embedding",
                "face",
                "identity",
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[TOY_IDENTITY, *list_files()],
                    tooltip=(
                        "ArcFace or AdaFace weights, such as w600k_r50. The toy network knows drawn"
                        " faces only; for photographs choose a file."
                    ),
                )
            ],
            outputs=[
                IdentityType.Output(
                    display_name="identity", tooltip="For MagiCapture Train and Portrait Metrics."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> str:
        return identity.state_of(file) if file and file != TOY_IDENTITY else ""

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        if file == TOY_IDENTITY:
            return io.NodeOutput(
                Identity(file, face_network.load(), face_network.SIDE, face_network.MARGIN)
            )
        return io.NodeOutput(load_identity(file))
