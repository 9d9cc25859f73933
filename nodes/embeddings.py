"""Save Embedding and Load Embedding: learned words as files."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.page.notices import say_on_node
from ..host.text.embedding_files import (
    embedding_state,
    load_embedding,
    name_part,
    save_embedding,
)
from ..host.text.learned_words import Embedding
from .declare import EmbeddingsType, schema
from .inputs import Node, check_texts


class MagicEmbeddingSave(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEmbeddingSave",
            display_name="Save Embedding",
            category="MagicPortrait/MagiCapture",
            description=(
                "Writes each learned word as a safetensors file into the embeddings folder, where"
                " 'embedding:name' finds it."
            ),
            search_aliases=["textual inversion", "export embedding"],
            is_output_node=True,
            inputs=[
                EmbeddingsType.Input(
                    "embeddings", tooltip="Learned words, from MagiCapture Train."
                ),
                io.String.Input(
                    "name",
                    default="magicapture",
                    tooltip="The files are named after this and the placeholder.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="names",
                    tooltip=(
                        "The names to write in prompts, one a line: embedding:magicapture_subject."
                    ),
                )
            ],
        )

    @classmethod
    def execute(cls, embeddings: tuple[Embedding, ...], name: str) -> io.NodeOutput:
        check_texts(name=name)
        words = [name_part(embedding.placeholder) for embedding in embeddings]
        paths = [
            save_embedding(embedding, f"{'_'.join(name.split())}_{word or i}")
            for i, (embedding, word) in enumerate(zip(embeddings, words))
        ]
        return io.NodeOutput("\n".join(f"embedding:{path.stem}" for path in paths))


class MagicEmbeddingLoad(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        import folder_paths

        files = [
            name
            for name in folder_paths.get_filename_list("embeddings")
            if name.endswith(".safetensors")
        ]
        return schema(
            node_id="MagicEmbeddingLoad",
            display_name="Load Embedding",
            category="MagicPortrait/MagiCapture",
            description=(
                "Reads a learned word from the embeddings folder, to be used under its placeholder"
                " with MagiCapture Apply."
            ),
            search_aliases=["textual inversion", "import embedding"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files or ["(no safetensors file in the embeddings folder)"],
                    tooltip="A file of ComfyUI's embeddings folder.",
                ),
                io.String.Input(
                    "placeholder",
                    default="",
                    tooltip=(
                        "The word to write in prompts. Empty: the one that the file was saved with."
                    ),
                ),
                EmbeddingsType.Input("embeddings", optional=True, tooltip="Words before this one."),
            ],
            outputs=[EmbeddingsType.Output(display_name="embeddings", tooltip="All words so far.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: Any) -> str:
        return embedding_state(file) if file else ""

    @classmethod
    def execute(
        cls, file: str, placeholder: str, embeddings: tuple[Embedding, ...] = ()
    ) -> io.NodeOutput:
        check_texts(placeholder=placeholder)
        embedding = load_embedding(file, placeholder.strip())
        if not placeholder.strip():
            # Nothing else on the page says which word the file has.
            say_on_node(f"write in the prompt: {embedding.placeholder}")
        return io.NodeOutput((*embeddings, embedding))
