"""Sampling a pipeline: schedulers, conditioning, one generator per image, and what is no image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stages.components.diffusion import Conditioning, parts_of
from stages.components.imaging import RgbBatch, RgbImage
from stages.components.latents import TextCache, encode_texts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Fault = Literal["not finite", "black", "constant"]
MIN_SPREAD = 3  # grey levels between the darkest and the brightest pixel of an image
BLACK_BELOW = 8  # an image without any brighter pixel is black


@dataclass(frozen=True)
class Sampler:
    """A pipeline with the text embeddings of all prompts, each computed once."""

    pipeline: "DiffusionPipeline"
    texts: TextCache
    negative_prompt: str
    image_size: int  # px
    num_inference_steps: int
    guidance_scale: float
    device: torch.device

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int]
    ) -> tuple[RgbBatch, list[Fault | None]]:
        """Sample one image per prompt, each from a CPU generator of its own seed.

        An image depends on its prompt and seed; the batch around it changes rounding only (at most
        1/255 in float32). The pixels are what the pipeline gives, rounded; its three channels are
        not averaged, so that plain diffusers reproduces the file.

        Returns:
            uint8 (n, size, size, 3), and for each image what is wrong with it or None.
        """
        wanted = self.texts.look_up(prompts, self.device)
        refused = self.texts.look_up([self.negative_prompt] * len(prompts), self.device)
        images: NDArray[np.float32] = self.pipeline(
            **embeddings(wanted, refused),
            height=self.image_size,
            width=self.image_size,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images
        finite = [bool(np.isfinite(image).all()) for image in images]
        pixels = np.rint(np.where(np.isfinite(images), images, 0) * 255).astype(np.uint8)
        faults = [
            find_fault(p) if ok else "not finite" for p, ok in zip(pixels, finite, strict=True)
        ]
        return pixels, faults


def embeddings(wanted: Conditioning, refused: Conditioning) -> dict[str, torch.Tensor]:
    """Name the embeddings as the pipelines' arguments; SDXL takes the pooled ones too."""
    given = {
        "prompt_embeds": wanted.prompt_embeds,
        "negative_prompt_embeds": refused.prompt_embeds,
    }
    if wanted.pooled is not None and refused.pooled is not None:
        given["pooled_prompt_embeds"] = wanted.pooled
        given["negative_pooled_prompt_embeds"] = refused.pooled
    return given


def find_fault(image: RgbImage) -> Fault | None:
    """Say what makes an image useless: black, or one grey level; None if nothing does."""
    if int(image.max()) < BLACK_BELOW:
        return "black"
    return "constant" if int(image.max()) - int(image.min()) < MIN_SPREAD else None


def build_sampler(
    pipeline: "DiffusionPipeline",
    prompts: Sequence[str],
    *,
    negative_prompt: str,
    scheduler: Literal["dpmsolver_multistep", "ddim", "euler"],
    image_size: int,
    num_inference_steps: int,
    guidance_scale: float,
    batch_size: int,
) -> Sampler:
    """Set the scheduler and encode every distinct prompt once; the same prompts, the same bits."""
    pipeline.scheduler = build_scheduler(scheduler, pipeline.scheduler.config)
    base = parts_of(pipeline)
    return Sampler(
        pipeline=pipeline,
        texts=encode_texts(base, [negative_prompt, *prompts], batch_size),
        negative_prompt=negative_prompt,
        image_size=image_size,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        device=torch.device(pipeline.device),
    )


def build_scheduler(
    name: Literal["dpmsolver_multistep", "ddim", "euler"], trained_with: Any
) -> Any:
    """Build a sampling scheduler by name on the noise schedule that the model was trained with."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

    schedulers = {
        "dpmsolver_multistep": DPMSolverMultistepScheduler,
        "ddim": DDIMScheduler,
        "euler": EulerDiscreteScheduler,
    }
    return schedulers[name].from_config(trained_with)
