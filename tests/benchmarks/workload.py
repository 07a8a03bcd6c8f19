"""What the benchmarks work on: made-up slices with captions, and jobs that both loops are given."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from pipeline.contracts import LABELS, Artifact, CaptionRecord, SliceRecord, Split, write_records
from stages.components.imaging.pixels import save_png, to_rgb
from stages.generate.grid import build_grid

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")  # where the published scripts put adapters
NUM_HELD_OUT = 4


@dataclass(frozen=True)
class TrainingJob:
    """One fine-tuning; `batch_size` x `accumulation` is the effective batch."""

    model: str  # plug-in of base_models/: tiny_sdxl, sd15, sdxl
    weights: str  # folder in the layout of diffusers
    data: str  # folder that `write_data` has made
    out: str  # for adapters, logs and caches
    steps: int
    batch_size: int
    accumulation: int
    resolution: int
    rank: int
    trains_text: bool = False
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    is_checkpointed: bool = False  # gradient checkpointing
    is_compiled: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    has_our_draws: bool = False  # noise, order and initial adapters of ours in the plain loop too
    is_watched: bool = True  # see `harness.watched`


@dataclass(frozen=True)
class SamplingJob:
    """Images from the prompts of a balanced grid."""

    model: str
    weights: str
    out: str
    adapter: str  # folder with an adapter
    num_images: int
    batch_size: int
    image_size: int
    num_inference_steps: int
    guidance_scale: float
    is_compiled: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    prompts: list[list[Any]] = field(default_factory=list)  # (text, seed), for the plain loop


def write_data(folder: Path, count: int, size_px: int) -> Path:
    """Write `count` smooth slices for training and a few held-out ones, all captioned.

    `preprocess/` and `caption/` are artifacts for our loop; `caption/metadata.jsonl` with its
    images is the Hugging Face imagefolder that the published scripts read.
    """
    prompts = build_grid(LABELS, count + NUM_HELD_OUT, seed=0)
    slices, captions = [], []
    for number, prompt in enumerate(prompts):
        split: Split = "train" if number < count else "val"
        name = f"s{number:05d}"
        rng = np.random.default_rng(number)
        smooth = gaussian_filter(rng.standard_normal((size_px, size_px)), size_px / 16)
        pixels = (128 + 60 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)
        for root in ("preprocess", "caption"):
            (folder / root / "images").mkdir(parents=True, exist_ok=True)
            save_png(folder / root / "images" / f"{name}.png", to_rgb(pixels))
        text = prompt.render("structured", lambda words: len(words.split()))
        shared: dict[str, Any] = {"slice_id": name, "label": prompt.label, "split": split}
        slices.append(
            SliceRecord(
                **shared,
                subject_id=name,
                group_id=name,
                source="benchmark",
                image_path=f"images/{name}.png",
                original=name,
                original_width_px=size_px,
                original_height_px=size_px,
            )
        )
        captions.append(
            CaptionRecord(
                **shared,
                file_name=f"images/{name}.png",
                text=text,
                status="ok",
                report=prompt.report,
                raw=text,
                num_tokens=0,
            )
        )
    write_records(folder / "preprocess" / "records.jsonl", slices)
    write_records(folder / "caption" / "records.jsonl", captions)
    rows = [{"file_name": it.file_name, "text": it.text} for it in captions if it.split == "train"]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "caption" / "metadata.jsonl").write_text(lines, encoding="utf-8")
    return folder


def read_slices(folder: Path) -> Artifact[SliceRecord]:
    """Open what `write_data` has made, as the finetune stage is given it."""
    return Artifact(folder / "preprocess", "slices", SliceRecord, {"config": {}, "notes": {}})


def read_captions(folder: Path) -> Artifact[CaptionRecord]:
    """Open what `write_data` has made, as the finetune stage is given it."""
    return Artifact(folder / "caption", "captions", CaptionRecord, {"config": {}, "notes": {}})


def to_json(job: TrainingJob | SamplingJob) -> str:
    """Write a job for a process of its own."""
    return json.dumps(asdict(job))
