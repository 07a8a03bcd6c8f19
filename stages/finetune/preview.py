"""Images of the model that is being trained: grids to look at, and what selection by KID scores.

Captions of validation slices are the prompts. Prompts and seeds are the same at every step, so that
only the weights differ. The training notices nothing: all randomness comes from generators of the
images' own, and modes, devices and random states are put back.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.contracts import LABELS, Orientation
from pipeline.seeding import derive_seed
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.base_model import BaseModel, assemble
from stages.components.diffusion.sampling import Sampler, build_scheduler
from stages.components.diffusion.text_embeddings import TextCache, encode_texts
from stages.components.imaging.pixels import RgbBatch, RgbImage, save_png
from stages.finetune.trainer import Trainer
from stages.finetune.training_set import CaptionedSlice

FOLDER = "samples"
ORIENTATIONS: tuple[Orientation, ...] = ("axial", "coronal", "sagittal", "unknown")
TEXT_BATCH = 16


@dataclass(frozen=True)
class Preview:
    """Prompts and seeds that stay; `texts` None: the text encoders are trained, so encode anew."""

    samples: list[CaptionedSlice]
    seeds: list[int]
    texts: TextCache | None


def build_grid(
    base: BaseModel, samples: list[CaptionedSlice], config: FinetuneConfig, seed: int
) -> Preview | None:
    """Choose the prompts of sample grids; None where the config asks for no grid."""
    if not config.sample_every:
        return None
    views = pick_views(samples)
    return build_preview(base, views, purpose="preview", seed=seed, trains_text=config.trains_text)


def build_preview(
    base: BaseModel, samples: list[CaptionedSlice], *, purpose: str, seed: int, trains_text: bool
) -> Preview:
    """Fix the seeds of images, and the embeddings of their prompts where encoders are frozen."""
    return Preview(
        samples=samples,
        seeds=[derive_seed(seed, purpose, sample.slice_id) for sample in samples],
        texts=None if trains_text else encode_prompts_of(base, samples),
    )


def encode_prompts_of(base: BaseModel, samples: Sequence[CaptionedSlice]) -> TextCache:
    """Encode the captions, and the empty one that guidance leads away from."""
    return encode_texts(base, ["", *(sample.text for sample in samples)], TEXT_BATCH)


def pick_views(samples: Sequence[CaptionedSlice]) -> list[CaptionedSlice]:
    """Pick the first slice of every class and plane that there is, classes in a row."""
    first: dict[tuple[str, str], CaptionedSlice] = {}
    for sample in samples:
        if sample.label is not None:
            first.setdefault((sample.orientation, sample.label), sample)
    cells = [(plane, label) for plane in ORIENTATIONS for label in LABELS]
    return [first[cell] for cell in cells if cell in first]


def sample_images(trainer: Trainer, preview: Preview) -> RgbBatch:
    """Sample one image per prompt with the weights that a user would get now.

    As many at once as training takes. Deterministic on the CPU.

    Returns:
        uint8 (n, resolution, resolution, 3); what is not finite is black.
    """
    config = trainer.config
    with trainer.trained.as_exported(), borrowed(trainer) as base:
        sampler = Sampler(
            pipeline=assemble(
                base, build_scheduler("dpmsolver_multistep", base.noise_scheduler.config)
            ),
            texts=preview.texts or encode_prompts_of(base, preview.samples),
            negative_prompt="",
            image_size=config.resolution,
            num_inference_steps=config.sample_steps,
            guidance_scale=config.sample_guidance,
            device=trainer.device,
        )
        images = []
        for start in range(0, len(preview.samples), config.batch_size):
            part = slice(start, start + config.batch_size)
            prompts = [sample.text for sample in preview.samples[part]]
            images.append(sampler.draw(prompts, preview.seeds[part])[0])
    return np.concatenate(images)


@contextmanager
def borrowed(trainer: Trainer) -> Iterator[BaseModel]:
    """Lend the bare networks on the training's device, in evaluation mode; then put all back."""
    unwrap = trainer.accelerator.unwrap_model
    base = replace(
        trainer.base,
        unet=unwrap(trainer.base.unet),
        text_encoders=[unwrap(encoder) for encoder in trainer.base.text_encoders],
    )
    parts = [base.unet, base.vae, *base.text_encoders]
    before = [(part, part.training, next(part.parameters()).device) for part in parts]
    gpus = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        try:
            for part, _, device in before:
                part.eval()
                if device.type != trainer.device.type:
                    part.to(trainer.device)
            yield base
        finally:
            for part, was_training, device in before:
                part.train(was_training)
                if device.type != trainer.device.type:
                    part.to(device)


def draw_grid(images: RgbBatch, samples: Sequence[CaptionedSlice]) -> RgbImage:
    """Lay images out: classes from left to right, planes from top to bottom; missing ones black."""
    labels = [label for label in LABELS if any(s.label == label for s in samples)]
    planes = [plane for plane in ORIENTATIONS if any(s.orientation == plane for s in samples)]
    side = images.shape[1]
    grid = np.zeros((len(planes) * side, len(labels) * side, 3), dtype=np.uint8)
    for image, sample in zip(images, samples, strict=True):
        assert sample.label is not None, sample.slice_id
        top, left = planes.index(sample.orientation) * side, labels.index(sample.label) * side
        grid[top : top + side, left : left + side] = image
    return grid


def write_grid(trainer: Trainer, preview: Preview, root: Path, step: int) -> RgbImage:
    """Sample the prompts and write `samples/step-000100.png`, marked as synthetic."""
    grid = draw_grid(sample_images(trainer, preview), preview.samples)
    path = root / FOLDER / f"step-{step:06d}.png"
    path.parent.mkdir(exist_ok=True)
    text = {
        "synthetic": "true",
        "step": str(step),
        "prompts": json.dumps([sample.text for sample in preview.samples]),
        "seeds": json.dumps(preview.seeds),
    }
    save_png(path, grid, text)
    return grid
