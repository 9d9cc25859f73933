"""Measuring pictures against their references, and showing them side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..host.metrics.clip import aesthetic_heads, clip_folders
from ..host.metrics.comparison import AUTO, OFF, Comparison
from ..host.metrics.dino import dino_folders
from ..host.metrics.perceptual import lpips_trunks
from ..host.metrics.table import ARROWS, COLUMNS, MetricTable, measure, values_of_json
from ..host.models.safe_files import write_numbered
from ..host.pictures.compare_grid import CompareGrid
from ..host.pictures.host_boxes import from_host_boxes
from ..magic.metrics import best_of
from ..magic.pictures import latent_batch, picked, picture_batch
from .declare import Boxes, IdentityType, advanced, choice_complaint, link_only, schema
from .inputs import Node, check_ranges, check_texts, refuse

_GRID_ROWS = 8


class MagicPortraitMetrics(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicPortraitMetrics",
            display_name="Portrait Metrics",
            category="MagicPortrait/evaluation",
            description=(
                "The numbers of the papers: identity (CSIM), CLIP-I, CLIP-T, DINO, LPIPS, style"
                " distance, aesthetics. Networks come from models/metrics; what is not there is"
                " named in the table."
            ),
            search_aliases=[
                "similarity",
                "identity",
                "clip score",
                "csim",
                "dino score",
                "lpips",
                "aesthetic score",
                "evaluation",
            ],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures to measure."),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip=(
                        "What they are compared with. With several, the mean over all of them"
                        " counts."
                    ),
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    optional=True,
                    default="",
                    tooltip="For CLIP-T: the prompt of the pictures, or one line for each picture.",
                ),
                IdentityType.Input(
                    "identity",
                    optional=True,
                    tooltip="For CSIM: a network that tells people apart.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip=(
                        "For CLIP-I and aesthetics: used instead of a CLIP folder in"
                        " models/metrics."
                    ),
                ),
                link_only(
                    Boxes.Input(
                        "boxes",
                        optional=True,
                        tooltip=(
                            "For CSIM: face boxes of the pictures, from Concept Mask. Default: all"
                            " of each."
                        ),
                    )
                ),
                link_only(
                    Boxes.Input(
                        "reference_boxes",
                        optional=True,
                        tooltip="For CSIM: face boxes of the references. Default: all of each.",
                    )
                ),
                _choice(
                    "clip", clip_folders(), "For CLIP-I and CLIP-T: a transformers folder of CLIP."
                ),
                _choice(
                    "dino", dino_folders(), "For DINO: a transformers folder of DINO or DINOv2."
                ),
                _choice(
                    "lpips",
                    lpips_trunks(),
                    "For LPIPS: torchvision's AlexNet file; needs the package lpips.",
                ),
                _choice(
                    "aesthetic", aesthetic_heads(), "For aesthetics: LAION's head on CLIP ViT-L/14."
                ),
                advanced(
                    io.String.Input(
                        "save_as",
                        optional=True,
                        default="",
                        tooltip=(
                            "Also writes the table as CSV and JSON into the output folder, under"
                            " names that begin so. Empty: does not."
                        ),
                    )
                ),
                io.Image.Input(
                    "others",
                    optional=True,
                    tooltip=(
                        "Other pictures of the references' person, for the column copying: how much"
                        " liker the pictures are to the references themselves. Near 0 is good."
                    ),
                ),
                link_only(
                    Boxes.Input(
                        "other_boxes",
                        optional=True,
                        tooltip="For copying: face boxes of the others. Default: all of each.",
                    )
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="table",
                    tooltip="The table in Markdown, with means and what is missing.",
                ),
                io.String.Output(display_name="csv", tooltip="A row for each picture."),
                io.String.Output(display_name="json", tooltip="Values, means and what is missing."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        references: torch.Tensor | None = None,
        prompt: str = "",
        identity: Any = None,
        clip_vision: Any = None,
        boxes: Any = None,
        reference_boxes: Any = None,
        clip: str = AUTO,
        dino: str = AUTO,
        lpips: str = AUTO,
        aesthetic: str = AUTO,
        save_as: str = "",
        others: torch.Tensor | None = None,
        other_boxes: Any = None,
    ) -> io.NodeOutput:
        check_texts(prompt=prompt, save_as=save_as)
        images = picture_batch(images, "images")
        references = None if references is None else picture_batch(references, "references")
        others = None if others is None else picture_batch(others, "others")
        lines = [line.strip() for line in prompt.splitlines() if line.strip()]
        prompts = lines if len(lines) == len(images) else [" ".join(lines)] if lines else []
        comparison = Comparison(
            images=images,
            references=references,
            prompts=tuple(prompts),
            boxes=None if boxes is None else from_host_boxes(boxes, len(images)),
            reference_boxes=(
                None
                if reference_boxes is None or references is None
                else from_host_boxes(reference_boxes, len(references))
            ),
            identity=identity,
            clip_vision=clip_vision,
            clip=clip,
            dino=dino,
            lpips=lpips,
            aesthetic=aesthetic,
            others=others,
            other_boxes=(
                None
                if other_boxes is None or others is None
                else from_host_boxes(other_boxes, len(others))
            ),
        )
        table = measure(comparison)
        labels = [str(i + 1) for i in range(len(images))]
        if save_as.strip():
            _save(table, labels, save_as.strip())
        text = table.markdown(labels)
        return io.NodeOutput(text, table.csv(labels), table.json(labels), ui=ui.PreviewText(text))


def _choice(name: str, models: list[str], tooltip: str) -> Any:
    return advanced(
        io.Combo.Input(
            name,
            options=[AUTO, OFF, *models],
            default=AUTO,
            optional=True,
            tooltip=f"{tooltip} 'auto' takes the first.",
        )
    )


def _save(table: MetricTable, labels: list[str], prefix: str) -> None:
    import folder_paths

    contents = {".csv": table.csv(labels), ".json": table.json(labels)}
    write_numbered(
        Path(folder_paths.get_output_directory()),
        prefix,
        {suffix: text.encode(errors="replace") for suffix, text in contents.items()},
    )


class MagicBestOfBatch(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicBestOfBatch",
            display_name="Best of a Batch",
            category="MagicPortrait/evaluation",
            description=(
                "Keeps the best pictures of a batch, by a column of Portrait Metrics: likeness,"
                " what the words say, and others. Best first."
            ),
            search_aliases=["pick best", "rank images", "sort by score", "select image", "filter"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures that were measured."),
                io.String.Input(
                    "json",
                    force_input=True,
                    tooltip="The json of Portrait Metrics, which measured these pictures.",
                ),
                io.Combo.Input(
                    "column",
                    options=list(COLUMNS),
                    default="CSIM",
                    tooltip=(
                        "What counts: CSIM the same person, CLIP-T the prompt's words, CLIP-I and"
                        " DINO the references' things, LPIPS and style distance (least is best)"
                        " their look, copying (least is best) the person rather than the pictures."
                    ),
                ),
                io.Int.Input(
                    "count",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="How many are kept. More than there are: all, best first.",
                ),
                io.Latent.Input(
                    "samples",
                    optional=True,
                    tooltip="The pictures' latents, of which the same ones are kept.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The best pictures, best first."),
                io.Latent.Output(
                    display_name="samples",
                    tooltip="Their latents. Without samples, what is connected here does not run.",
                ),
                io.String.Output(
                    display_name="report", tooltip="Which pictures they are, and their numbers."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        json: str,
        column: str,
        count: int,
        samples: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        check_ranges(cls, count=count)
        check_texts(json=json)
        refuse(choice_complaint("column", column, COLUMNS))
        images = picture_batch(images, "images")
        latent = None if samples is None else latent_batch(samples, "samples")
        values = values_of_json(json, column)
        for name, batch in (("images", images), ("samples", latent)):
            if batch is not None and len(batch) != len(values):
                raise ValueError(
                    f"{name} are {len(batch)}, but Portrait Metrics measured {len(values)}"
                    " pictures: connect the same batch to both"
                )
        best = best_of(values, count, ARROWS[column] == "↑")
        if not best:
            raise ValueError(
                f"none of the pictures has a number for {column}: look at the table of Portrait"
                " Metrics"
            )
        report = "\n".join(f"picture {i + 1}: {column} {values[i]:.4f}" for i in best)
        latents = ExecutionBlocker(None) if samples is None else picked(samples, best)
        return io.NodeOutput(images[best], latents, report)


class MagicCompareGrid(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        rows = [
            io.Image.Input(
                f"row_{i}",
                optional=i > 1,
                tooltip=f"The pictures of row {i}, a column for each picture of the batch.",
            )
            for i in range(1, _GRID_ROWS + 1)
        ]
        return schema(
            node_id="MagicCompareGrid",
            display_name="Compare Grid",
            category="MagicPortrait/evaluation",
            description=(
                "Batches as rows of one picture, with captions: methods against seeds, references"
                " beside results."
            ),
            search_aliases=["image grid", "xy plot", "contact sheet", "comparison", "labels"],
            inputs=[
                rows[0],
                io.String.Input(
                    "row_captions",
                    multiline=True,
                    default="",
                    tooltip="What stands beside each row, one line a row.",
                ),
                io.String.Input(
                    "column_captions",
                    multiline=True,
                    default="",
                    tooltip="What stands above each column, one line a column.",
                ),
                io.String.Input("title", default="", tooltip="What stands above it all."),
                io.Int.Input(
                    "cell",
                    default=256,
                    min=32,
                    max=2048,
                    step=8,
                    tooltip="Side of each place in pixels; pictures are fitted into it.",
                ),
                io.Boolean.Input(
                    "turned",
                    default=False,
                    tooltip="Makes columns of the batches instead of rows; captions go with them.",
                ),
                advanced(
                    io.Int.Input("gap", default=6, min=0, max=128, tooltip="Pixels between places.")
                ),
                advanced(
                    io.Int.Input(
                        "font",
                        default=18,
                        min=6,
                        max=200,
                        tooltip="Height of the captions' letters in pixels.",
                    )
                ),
                *rows[1:],
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="The whole sheet as one picture.")
            ],
        )

    @classmethod
    def execute(
        cls,
        row_1: torch.Tensor,
        row_captions: str,
        column_captions: str,
        title: str,
        cell: int,
        turned: bool,
        gap: int,
        font: int,
        **more: torch.Tensor | None,
    ) -> io.NodeOutput:
        check_ranges(cls, cell=cell, gap=gap, font=font)
        check_texts(row_captions=row_captions, column_captions=column_captions, title=title)
        rows = {"row_1": row_1, **dict(sorted(more.items()))}
        cells: list[list[torch.Tensor | None]] = [
            list(picture_batch(batch, name)) for name, batch in rows.items() if batch is not None
        ]
        captions = [
            text.splitlines() if text.strip() else [] for text in (row_captions, column_captions)
        ]
        if turned:
            longest = max(len(row) for row in cells)
            cells = [
                list(column)
                for column in zip(*(row + [None] * (longest - len(row)) for row in cells))
            ]
            captions.reverse()
        grid = CompareGrid(cells, captions[0], captions[1], title.strip(), cell, gap, font)
        return io.NodeOutput(grid.draw())
