"""Scores of a finished base model: KID to tumour-free phantoms that it never saw.

Beside it the `vae` row, the same held-out slices passed through the model's own VAE: no sampling
can come nearer to them than that. Both on efficientnet_lite0 features.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import LABELS, Modality, Orientation
from stages.components.phantoms.subject import MODALITIES
from stages.components.tumor_report.words import ORIENTATIONS
from stages.embedded.corpora.heads import HeadCorpus

NUM_IMAGES = 384
BATCH = 16
STEPS = 20
GUIDANCE = 3.0


def base_scores(
    folder: Path, held_out: HeadCorpus, prompt_for: Callable[[Modality, Orientation], str], *,
    kinds: Mapping[str, NDArray[np.bool_]] | None = None,
    num_images: int = NUM_IMAGES, guidance_scale: float = GUIDANCE, device: str = "cpu",
) -> dict[str, float]:  # fmt: skip
    """Sample as many images as slices are compared, one for each slice's contrast and plane.

    Args:
        folder: a pipeline in diffusers' layout, of slices of `held_out`'s size.
        held_out: tumour-free slices are taken from it, at equal distances.
        prompt_for: words contrast and plane.
        kinds: by name, the slices of `held_out` that the same samples are compared with apart.
        num_images: at most so many.
        guidance_scale: of classifier-free guidance; 1 is none.
        device: "cpu" or "cuda".

    Returns:
        `kid` of samples, `kid_NAME` of each kind, `vae_kid` of reconstructions, `n` of each side.
    """
    import torch
    from diffusers import DiffusionPipeline

    from stages.components.features.extractors import efficientnet_lite0
    from stages.components.statistics import kernel_distance
    from stages.components.statistics.bootstrap import Resampled
    from stages.embedded.vae import to_pixels

    free = np.flatnonzero(held_out.label == LABELS.index("notumor"))
    rows = free[np.linspace(0, len(free) - 1, min(num_images, len(free))).astype(int)]
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    size = held_out.images.shape[1]
    sampled: list[NDArray[np.uint8]] = []
    passed: list[NDArray[np.uint8]] = []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        prompts = [
            prompt_for(
                cast("Modality", MODALITIES[held_out.modality[row]]),
                ORIENTATIONS[held_out.orientation[row]],
            )
            for row in some
        ]
        images = pipeline(
            prompts, num_inference_steps=STEPS, guidance_scale=guidance_scale, height=size,
            width=size, output_type="np",
            generator=[torch.Generator().manual_seed(int(row)) for row in some],
        ).images  # fmt: skip
        sampled.append((images * 255).round().astype(np.uint8))
        with torch.no_grad():
            pixels = to_pixels(held_out.images[some]).to(device)
            latents = pipeline.vae.encode(pixels).latent_dist.mean
            decoded = pipeline.vae.decode(latents).sample.clamp(-1, 1).cpu()
        passed.append(((decoded + 1) * 127.5).round().permute(0, 2, 3, 1).numpy().astype(np.uint8))
    extract = efficientnet_lite0.load(efficientnet_lite0.Settings())
    grey = np.repeat(held_out.images[rows][..., None], 3, axis=3)
    real, made, same = (
        Resampled.once(extract(images).astype(np.float64))
        for images in (grey, np.concatenate(sampled), np.concatenate(passed))
    )
    by_kind = {
        f"kid_{name}": round(
            kernel_distance.compute(real=real.features[kept[rows]], synthetic=made.features), 4
        )
        for name, kept in (kinds or {}).items()
    }
    return {
        "kid": round(float(kernel_distance.resample(real=real, synthetic=made)[0]), 4),
        **by_kind,
        "vae_kid": round(
            float(kernel_distance.resample(real=real, synthetic=same, paired=True)[0]), 4
        ),
        "n": len(rows),
    }
