"""Training set of fine-tuning: captioned slices, encoded once, and the batch of each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.contracts import Artifact, CaptionRecord, Label, Orientation, SliceRecord, Split
from pipeline.errors import TrainingError
from pipeline.seeding import numpy_rng
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.base_model import BaseModel, Conditioning, encode_prompts
from stages.components.diffusion.placeholder import Placeholder
from stages.components.diffusion.text_embeddings import TextCache
from stages.components.diffusion.tokens import token_counter
from stages.components.tumor_report.mirroring import mirrored_caption
from stages.finetune.draws import (
    Draw,
    draw_sample,
    samples_of_step,
    spread_timesteps,
    stratified_timesteps,
)
from stages.finetune.encodings import LatentCache, cache_latents, cache_texts, lesion_cover


@dataclass(frozen=True)
class CaptionedSlice:
    """A slice to learn from; its id seeds its draws."""

    slice_id: str
    path: Path
    text: str
    mirrored_text: str | None = None  # None: the slice must not be mirrored
    label: Label | None = None
    orientation: Orientation = "unknown"
    mask_path: Path | None = None

    def opened(self, placeholder: Placeholder, count: Callable[[str], int]) -> "CaptionedSlice":
        """Return the sample with captions that open with the word of a textual inversion."""
        mirrored = self.mirrored_text
        return replace(
            self,
            text=placeholder.open(self.text, count),
            mirrored_text=None if mirrored is None else placeholder.open(mirrored, count),
        )


@dataclass(frozen=True)
class TrainingSet:
    """Samples, and in the same order what the frozen networks say about them.

    Attributes:
        samples: The slices.
        latents: Their crops; from `mirrored_from` on, of their mirror images.
        texts: None where text encoders are trained: their embeddings change every step.
        mirrored_from: The first crop of the mirror image; None: there are none.
        lesions: Which cells hold part of a lesion, bool (n, K, h, w); None: it does not matter.
    """

    samples: list[CaptionedSlice]
    latents: LatentCache
    texts: TextCache | None
    mirrored_from: int | None = None
    lesions: Tensor | None = None

    def caption(self, row: int, crop: int) -> str:
        """Return what is seen in a crop: sides are those of the mirror image if it is one."""
        sample = self.samples[row]
        is_mirrored = self.mirrored_from is not None and crop >= self.mirrored_from
        if is_mirrored and sample.mirrored_text is not None:
            return sample.mirrored_text
        return sample.text

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
) -> list[CaptionedSlice]:
    """Join captions with slices; captions that failed or are blank are left out.

    A blank caption would teach that slice as the unconditional one.

    Raises:
        TrainingError: No usable caption, or one of a slice that preprocess does not have.
    """
    known = {row.slice_id: row for row in slices.records()}
    samples = []
    for row in captions.records():
        if row.split != split or row.status == "failed" or not row.text.strip():
            continue
        if row.slice_id not in known:
            raise TrainingError(
                f"caption of slice {row.slice_id!r} in {captions.root} has no slice in "
                f"{slices.root}; rerun caption"
            )
        item = known[row.slice_id]
        stated = row.report.orientation if row.report else None
        mirrored = mirrored_caption(row.text, item.orientation, stated)
        samples.append(
            CaptionedSlice(
                row.slice_id,
                slices.path(item.image_path),
                row.text,
                mirrored,
                item.label,
                item.orientation if item.orientation != "unknown" else stated or "unknown",
                None if item.mask_path is None else slices.path(item.mask_path),
            )
        )
    if not samples:
        raise TrainingError(
            f"{captions.root} has no usable caption of split {split!r}; fine-tuning needs some of "
            "'train' and of 'val' (caption.splits)"
        )
    return samples


def pick_held_out(samples: Sequence[CaptionedSlice], count: int, seed: int) -> list[CaptionedSlice]:
    """Pick the slices whose loss is watched, the same ones throughout a run."""
    order = numpy_rng(seed, "held_out").permutation(len(samples))[:count]
    return [samples[index] for index in sorted(order)]


def open_captions(
    samples: Sequence[CaptionedSlice], config: FinetuneConfig, base: BaseModel
) -> list[CaptionedSlice]:
    """Open the captions with the placeholder of a textual inversion, within 77 tokens."""
    word = Placeholder(config.inversion.placeholder, config.inversion.num_vectors)
    count = token_counter(base.tokenizers)
    return [sample.opened(word, count) for sample in samples]


def build_training_set(
    base: BaseModel,
    samples: list[CaptionedSlice],
    config: FinetuneConfig,
    *,
    cache_dir: Path,
    progress: Callable[[str], None],
    is_held_out: bool = False,
) -> TrainingSet:
    """Encode slices and, where text encoders are frozen, captions and the empty one (dropout).

    With `config.mirror`, as many crops of the mirror image follow those of each slice. A slice that
    must not be mirrored has its own crops twice. Held-out slices are taken whole, as they are.

    Raises:
        TrainingError: Lesions are asked for, and no slice has a mask.
    """
    crops_per_image = 1 if is_held_out else config.crops_per_image
    is_mirrored = config.mirror and not is_held_out
    weighs_lesions = config.lesion_weight > 1 or config.grounding_weight > 0
    finds_lesions = weighs_lesions and not is_held_out

    def encode(chosen: list[CaptionedSlice], *, mirrored: bool) -> LatentCache:
        return cache_latents(
            base,
            [sample.path for sample in chosen],
            resolution=config.resolution,
            crops_per_image=crops_per_image,
            is_mirrored=mirrored,
            cache_dir=cache_dir,
            progress=progress,
        )

    masks = [sample.mask_path for sample in samples]
    if finds_lesions and not any(masks):
        raise TrainingError(
            "finetune.lesion_weight and finetune.grounding_weight need slices with lesion masks "
            "and none has one; take them out, or a source with masks"
        )
    latents = encode(samples, mirrored=False)
    lesions = lesion_cover(masks, latents.crops, config.resolution) if finds_lesions else None
    spoken = ["", *(sample.text for sample in samples)]
    if is_mirrored:
        rows = [n for n, sample in enumerate(samples) if sample.mirrored_text is not None]
        if rows:
            turned = encode([samples[n] for n in rows], mirrored=True)
            latents = with_mirrored(latents, turned, rows)
            if lesions is not None:
                other = lesions.clone()
                other[rows] = lesion_cover(
                    [masks[n] for n in rows], turned.crops, config.resolution, is_mirrored=True
                )
                lesions = torch.cat([lesions, other], dim=1)
        else:
            progress("finetune: no slice is known to be axial or coronal, so none is mirrored")
            is_mirrored = False
        spoken += [sample.mirrored_text for sample in samples if sample.mirrored_text is not None]
    texts = None if config.trains_text else cache_texts(base, spoken, cache_dir)
    return TrainingSet(samples, latents, texts, crops_per_image if is_mirrored else None, lesions)


def with_mirrored(latents: LatentCache, mirrored: LatentCache, rows: Sequence[int]) -> LatentCache:
    """Put the crops of the mirror images of some rows behind those of all slices, (n, 2K, ...)."""
    columns = {}
    for name in ("mean", "std", "crops"):
        straight = getattr(latents, name)
        turned = straight.clone()
        turned[list(rows)] = getattr(mirrored, name)
        columns[name] = torch.cat([straight, turned], dim=1)
    return replace(latents, **columns)


def draw_step(
    data: TrainingSet,
    *,
    seed: int,
    step: int,
    effective_batch: int,
    num_timesteps: int,
    caption_dropout: float,
    is_stratified: bool = False,
) -> Batch:
    """Draw a whole optimiser step: which slices, and all the randomness of each.

    With `is_stratified`, timesteps come one from each of `effective_batch` equal shares: still
    uniform for each sample, and the step's mean loss varies less.
    """
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
    if is_stratified:
        levels = stratified_timesteps(seed, step, effective_batch, num_timesteps)
        draws = [replace(draw, timestep=t) for draw, t in zip(draws, levels, strict=True)]
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
