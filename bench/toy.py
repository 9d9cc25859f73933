"""The toy world for benchmarks: the pack and ComfyUI in this process, the shipped checkpoint,
pictures and where their parts are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from devkit.comfyui import use_host  # noqa: E402
from devkit.pack import load_pack  # noqa: E402

load_pack()
use_host()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from magicportrait.demo import checkpoint, face_network, portraits  # noqa: E402
from magicportrait.demo.dataset import HELD_OUT_SEEDS  # noqa: E402
from magicportrait.demo.portraits import Portrait, Rendering  # noqa: E402
from magicportrait.host.faces.identity import Identity  # noqa: E402
from magicportrait.host.layout.record import LayoutRecord  # noqa: E402
from magicportrait.nodes.layout import MagicSemanticLayout  # noqa: E402

LATENT = checkpoint.IMAGE_SIDE // 8


@dataclass(frozen=True)
class Toy:
    """The shipped checkpoint."""

    model: Any
    clip: Any
    vae: Any

    @classmethod
    def load(cls) -> Toy:
        return cls(*checkpoint.load())

    def encode_text(self, text: str) -> list[Any]:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def decode(self, samples: Tensor) -> Tensor:
        return self.vae.decode(samples).clamp(0, 1)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return torch.cat(
            [
                torch.randn(1, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(seed))
                for seed in seeds
            ]
        )

    def sample(
        self, model: Any, positive: Any, noise: Tensor, steps: int = 25, cfg: float = 4.0
    ) -> Tensor:
        import comfy.sample

        # Euler over the uniform schedule is DDIM with eta 0.
        empty = self.encode_text("")
        latent = torch.zeros_like(noise)
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            "euler",
            "ddim_uniform",
            positive,
            empty,
            latent,
            disable_pbar=True,
            seed=0,
        )

    def watch(
        self, prompt: str, phrases: Sequence[str], ca_scale: float = 1.0
    ) -> tuple[Any, Any, LayoutRecord]:
        return MagicSemanticLayout.execute(
            self.model, self.clip, prompt, ", ".join(phrases), ca_scale
        ).args


def identity() -> Identity:
    """The shipped network that tells drawn faces apart."""
    return Identity("toy", face_network.load(), face_network.SIDE, face_network.MARGIN)


def held_out(
    count: int, wanted: Callable[[Portrait], bool] = lambda portrait: True
) -> list[Portrait]:
    """The first `count` portraits that no training saw and that are as wanted."""
    found: list[Portrait] = []
    for seed in HELD_OUT_SEEDS:
        portrait = portraits.sample_portrait(seed)
        if wanted(portrait):
            found.append(portrait)
        if len(found) == count:
            break
    return found


def picture(rendering: Rendering) -> Tensor:  # 1 H W 3
    return torch.from_numpy(rendering.image)[None]


def owned_cells(record: LayoutRecord, samples: Tensor) -> Tensor:
    """The index of the phrase that owns each cell in the layout of a run's last step, -1 for none:
    B rows columns."""
    run = record.run_of(samples).steps
    return torch.from_numpy(run[max(run)].concepts)


def regions(record: LayoutRecord, samples: Tensor, phrases: Sequence[str]) -> dict[str, Tensor]:
    """Where each phrase is in the layout of a run's last step, at picture size: B H W, bool."""
    owned = owned_cells(record, samples)[:, None].float()
    enlarged = F.interpolate(owned, size=(checkpoint.IMAGE_SIDE,) * 2, mode="nearest")[:, 0]
    return {phrase: enlarged == i for i, phrase in enumerate(phrases)}


def foreground(record: LayoutRecord, samples: Tensor) -> Tensor:
    """The same for the layout's foreground: B H W, bool."""
    run = record.run_of(samples).steps
    found = torch.from_numpy(run[max(run)].foreground)[:, None].float()
    return F.interpolate(found, size=(checkpoint.IMAGE_SIDE,) * 2, mode="nearest")[:, 0] > 0


def mean_colour(image: Tensor, mask: Tensor) -> Tensor:
    """image: H W 3, mask: H W -> 3."""
    weight = mask.float()[..., None]
    return (image * weight).sum((0, 1)) / weight.sum().clamp(min=1e-6)


def write_report(name: str, lines: Sequence[str]) -> None:
    """Prints a report and keeps it in bench/results/."""
    text = "\n".join(lines) + "\n"
    print(text)
    folder = ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")


def contact_sheet(
    rows: Sequence[Sequence[Tensor]], path: Path, scale: int = 1, gap: int = 2
) -> None:
    """Pictures (H W 3) in rows, as one file."""
    from PIL import Image

    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = torch.ones(len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet[y * (height + gap) :, x * (width + gap) :][:height, :width] = image
    saved = Image.fromarray((sheet * 255).round().byte().numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    saved.resize((saved.width * scale, saved.height * scale), Image.Resampling.LANCZOS).save(path)
