"""What fine-tuning learns from: captioned slices, encoded once, and the draws of each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.contracts import Artifact, CaptionRecord, SliceRecord, Split
from pipeline.errors import TrainingError
from pipeline.seeding import numpy_rng
from stages.components.diffusion import BaseModel, Conditioning, encode_prompts
from stages.components.latents import LatentCache, TextCache, cache_latents, encode_texts
from stages.components.training import Draw, draw_sample, samples_of_step, spread_timesteps

TEXT_BATCH = 16  # captions encoded at once when text encoders are frozen


@dataclass(frozen=True)
class Sample:
    """A slice to learn from; its id seeds its draws."""

    slice_id: str
    path: Path
    text: str


@dataclass(frozen=True)
class TrainingSet:
    """Samples, and in the same order what the frozen networks say about them.

    `texts` is None where text encoders are trained: their embeddings change every step.
    """

    samples: list[Sample]
    latents: LatentCache
    texts: TextCache | None

    def condition(
        self, base: BaseModel, texts: Sequence[str], device: torch.device
    ) -> Conditioning:
        """Look embeddings up where they are cached, else run the (trained) text encoders."""
        if self.texts is None:
            return encode_prompts(base, texts)
        return self.texts.look_up(texts, device)


@dataclass(frozen=True)
class Batch:
    """Rows of a `TrainingSet` and the randomness of each."""

    rows: list[int]
    draws: list[Draw]


def read_samples(
    slices: Artifact[SliceRecord], captions: Artifact[CaptionRecord], split: Split
) -> list[Sample]:
    """Join captions with slices; captions with status "failed" are left out.

    Raises:
        TrainingError: No usable caption, or one of a slice that preprocess does not have.
    """
    paths = {row.slice_id: row.image_path for row in slices.records()}
    samples = []
    for row in captions.records():
        if row.split != split or row.status == "failed":
            continue
        if row.slice_id not in paths:
            raise TrainingError(
                f"caption of slice {row.slice_id!r} in {captions.root} has no slice in "
                f"{slices.root}; rerun caption"
            )
        samples.append(Sample(row.slice_id, slices.path(paths[row.slice_id]), row.text))
    if not samples:
        raise TrainingError(
            f"{captions.root} has no usable caption of split {split!r}; fine-tuning needs some of "
            "'train' and of 'val' (caption.splits)"
        )
    return samples


def pick_held_out(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """Pick the slices whose loss is watched, the same ones throughout a run."""
    order = numpy_rng(seed, "held_out").permutation(len(samples))[:count]
    return [samples[index] for index in sorted(order)]


def build_training_set(
    base: BaseModel,
    samples: list[Sample],
    *,
    resolution: int,
    crops_per_image: int,
    trains_text_encoder: bool,
    cache_dir: Path,
    progress: Callable[[str], None],
) -> TrainingSet:
    """Encode slices and, where text encoders are frozen, captions and the empty one (dropout)."""
    latents = cache_latents(
        base,
        [sample.path for sample in samples],
        resolution=resolution,
        crops_per_image=crops_per_image,
        cache_dir=cache_dir,
        progress=progress,
    )
    texts = None
    if not trains_text_encoder:
        texts = encode_texts(base, ["", *(sample.text for sample in samples)], TEXT_BATCH)
    return TrainingSet(samples, latents, texts)


def draw_step(
    data: TrainingSet,
    *,
    seed: int,
    step: int,
    effective_batch: int,
    num_timesteps: int,
    caption_dropout: float,
) -> Batch:
    """Draw a whole optimiser step: which slices, and all the randomness of each."""
    order = samples_of_step(seed, step, effective_batch, len(data.samples))
    draws = [
        draw_sample(
            (seed, "finetune", step, epoch, data.samples[row].slice_id),
            shape=data.latents.mean.shape[2:],
            num_crops=data.latents.mean.shape[1],
            num_timesteps=num_timesteps,
            caption_dropout=caption_dropout,
        )
        for epoch, row in order
    ]
    return Batch([row for _, row in order], draws)


def draw_held_out(data: TrainingSet, *, seed: int, num_timesteps: int) -> Batch:
    """Draw the fixed noise of the held-out loss: whole slices, own captions, spread timesteps."""
    timesteps = spread_timesteps(len(data.samples), num_timesteps)
    draws = []
    for sample, timestep in zip(data.samples, timesteps, strict=True):
        drawn = draw_sample(
            (seed, "held_out", sample.slice_id),
            shape=data.latents.mean.shape[2:],
            num_crops=1,
            num_timesteps=num_timesteps,
            caption_dropout=0.0,
        )
        draws.append(Draw(0, drawn.posterior, drawn.noise, timestep, drops_caption=False))
    return Batch(list(range(len(draws))), draws)


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """Split into consecutive parts of at most `size`."""
    starts = range(0, len(batch.rows), size)
    return [Batch(batch.rows[i : i + size], batch.draws[i : i + size]) for i in starts]
