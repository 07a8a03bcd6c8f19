"""Refiner, the second half of SDXL: goes on from latents which still hold noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ValueRangeError
from stages.components.diffusion.base_model import BaseModel
from stages.components.diffusion.text_embeddings import TextCache, encode_texts


@dataclass(frozen=True)
class Refiner:
    """An image-to-image pipeline with its own text embeddings, each computed once."""

    pipeline: Any  # StableDiffusionXLImg2ImgPipeline
    texts: TextCache
    start: float  # share of the noise levels that the base model has done

    def refine(self, latents: Tensor, **given: Any) -> Tensor:
        """Do the remaining steps: (n, channel, h, w) with noise to the same without.

        `given` holds the arguments that the base model got too: embeddings, generators (which go
        on where the base model left them), steps and guidance.
        """
        refined: Tensor = self.pipeline(
            # Read for its type only, because the latents are there.
            image=torch.zeros(1, 3, 8, 8),
            latents=latents,
            denoising_start=self.start,
            output_type="latent",
            **given,
        ).images
        return refined


def build_refiner(
    pipeline: Any, prompts: Sequence[str], *, start: float, steps: int, batch_size: int
) -> Refiner:
    """Encode every distinct prompt with the refiner's own encoders; its scheduler is set already.

    Raises:
        ValueRangeError: `start` leaves the refiner or the base model without a step.
    """
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(steps)
    levels = scheduler.config.num_train_timesteps
    left = int((scheduler.timesteps < round(levels - start * levels)).sum())
    if not 0 < left < steps:
        raise ValueRangeError(
            f"generate.refiner.settings.start {start} leaves {left} of {steps} steps to the "
            "refiner; expected at least one for it and one for the base model"
        )
    suffixes = [s for s in ("", "_2") if getattr(pipeline, f"text_encoder{s}") is not None]
    encoders = [getattr(pipeline, f"text_encoder{suffix}") for suffix in suffixes]
    for module in (pipeline.unet, *encoders):
        module.requires_grad_(False)
        module.eval()
    base = BaseModel(
        family="sdxl",
        tokenizers=[getattr(pipeline, f"tokenizer{suffix}") for suffix in suffixes],
        text_encoders=encoders,
        unet=pipeline.unet,
        vae=pipeline.vae,
        noise_scheduler=scheduler,
        zeros_for_empty=bool(pipeline.config.get("force_zeros_for_empty_prompt", False)),
    )
    return Refiner(pipeline, encode_texts(base, prompts, batch_size), start)
