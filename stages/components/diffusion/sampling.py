"""Sampling a pipeline: schedulers, conditioning, one generator per image, and what is no image."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.contracts import TumorReport
from pipeline.settings import GenerateConfig, SchedulerName
from stages.components.diffusion.base_model import parts_of
from stages.components.diffusion.latents import decode_latents
from stages.components.diffusion.refining import Refiner, build_refiner
from stages.components.diffusion.text_embeddings import TextCache, encode_texts
from stages.components.imaging.pixels import RgbBatch, RgbImage

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Fault = Literal["not finite", "black", "constant"]
TEXT_BATCH = 16  # prompts encoded at once with batch_size: auto
MIN_SPREAD = 3  # grey levels between the darkest and the brightest pixel of an image
BLACK_BELOW = 8  # an image without any brighter pixel is black


class Guidance(Protocol):
    """Steers sampling beside the prompt, each image by itself."""

    def steering(
        self, pipeline: Any, reports: Sequence[TumorReport], num_steps: int
    ) -> AbstractContextManager[None]:
        """Steer what the pipeline samples meanwhile, one image per report."""


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
    guidance_rescale: float = 0.0
    refiner: Refiner | None = None
    guidance: Guidance | None = None

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], reports: Sequence[TumorReport] = ()
    ) -> tuple[RgbBatch, list[Fault | None]]:
        """Sample one image per prompt, each from a CPU generator of its own seed.

        An image depends on its prompt and seed; the batch around it changes rounding only (at most
        1/255 in float32). The pixels are what the pipeline gives, rounded; its three channels are
        not averaged, so that plain diffusers reproduces the file. Guidance reads what was asked for
        from `reports`, one for each prompt, and acts before a refiner takes over.

        Returns:
            uint8 (n, size, size, 3), and for each image what is wrong with it or None.
        """
        given = {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "guidance_rescale": self.guidance_rescale,
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        }
        end = {} if self.refiner is None else {"denoising_end": self.refiner.start}
        steering: AbstractContextManager[None] = nullcontext()
        if self.guidance is not None:
            assert len(reports) == len(prompts), (len(reports), len(prompts))
            steering = self.guidance.steering(self.pipeline, reports, self.num_inference_steps)
        with steering:
            latents: Tensor = self.pipeline(
                **self._embeddings(self.texts, prompts),
                height=self.image_size,
                width=self.image_size,
                output_type="latent",
                **end,
                **given,
            ).images
        if self.refiner is not None:
            texts = self._embeddings(self.refiner.texts, prompts)
            latents = self.refiner.refine(latents, **texts, **given)
        images = decode(self.pipeline, latents)
        finite = [bool(np.isfinite(image).all()) for image in images]
        pixels = np.rint(np.where(np.isfinite(images), images, 0) * 255).astype(np.uint8)
        faults = [
            find_fault(p) if ok else "not finite" for p, ok in zip(pixels, finite, strict=True)
        ]
        return pixels, faults

    def _embeddings(self, texts: TextCache, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Name embeddings as the pipelines' arguments; SDXL takes the pooled ones too."""
        wanted = texts.look_up(prompts, self.device)
        refused = texts.look_up([self.negative_prompt] * len(prompts), self.device)
        named = {
            "prompt_embeds": wanted.prompt_embeds,
            "negative_prompt_embeds": refused.prompt_embeds,
        }
        if wanted.pooled is not None and refused.pooled is not None:
            named["pooled_prompt_embeds"] = wanted.pooled
            named["negative_pooled_prompt_embeds"] = refused.pooled
        return named


def decode(pipeline: "DiffusionPipeline", latents: Tensor) -> NDArray[np.float32]:
    """Decode normalised latents (n, channel, h, w) to images.

    Returns:
        float32 (n, size, size, 3) in [0, 1], or NaN.
    """
    with torch.no_grad():
        pixels = decode_latents(pipeline.vae, latents)
    images: NDArray[np.float32] = pipeline.image_processor.postprocess(pixels, output_type="np")
    return images


def find_fault(image: RgbImage) -> Fault | None:
    """Say what makes an image useless: black, or one grey level; None if nothing does."""
    if int(image.max()) < BLACK_BELOW:
        return "black"
    return "constant" if int(image.max()) - int(image.min()) < MIN_SPREAD else None


def prepare(pipeline: Any, config: GenerateConfig) -> None:
    """Bring a pipeline into the form in which it is sampled, in the order that speed asks for.

    The VAE becomes float32, because SDXL's own overflows in half precision. An adapter is merged
    before anything is compiled: compiled blocks would keep calling it beside the weights.
    """
    pipeline.vae.to(torch.float32)
    if config.fuse_adapter and hasattr(pipeline.unet, "peft_config"):
        merge_adapter(pipeline)
    if config.channels_last:
        for module in (pipeline.unet, pipeline.vae):
            module.to(memory_format=torch.channels_last)
    if config.compile_blocks:
        pipeline.unet.compile_repeated_blocks()


def merge_adapter(pipeline: Any) -> None:
    """Merge an adapter into the weights: summed in float32, rounded once to their own dtype."""
    parts = (getattr(pipeline, name, None) for name in ("unet", "text_encoder", "text_encoder_2"))
    modules = [part for part in parts if part is not None]
    dtype = pipeline.unet.dtype
    for module in modules:
        module.to(torch.float32)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    for module in modules:
        module.to(dtype)


def build_sampler(
    pipeline: "DiffusionPipeline",
    prompts: Sequence[str],
    config: GenerateConfig,
    *,
    refiner: tuple[Any, float] | None = None,
    guidance: Guidance | None = None,
) -> Sampler:
    """Set the scheduler and encode every distinct prompt once; the same prompts, the same bits.

    `refiner`: an image-to-image pipeline and the share of the noise levels before it takes over.

    Raises:
        ValueRangeError: The refiner or the base model would be left without a step.
    """
    batch_size = TEXT_BATCH if config.batch_size == "auto" else config.batch_size
    pipeline.scheduler = build_scheduler(config.scheduler, pipeline.scheduler.config)
    base = parts_of(pipeline)
    texts = [config.negative_prompt, *prompts]
    second = None
    if refiner is not None:
        refiner[0].scheduler = build_scheduler(config.scheduler, refiner[0].scheduler.config)
        second = build_refiner(
            refiner[0],
            texts,
            start=refiner[1],
            steps=config.num_inference_steps,
            batch_size=batch_size,
        )
    return Sampler(
        pipeline=pipeline,
        texts=encode_texts(base, texts, batch_size),
        negative_prompt=config.negative_prompt,
        image_size=config.image_size,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        device=torch.device(pipeline.device),
        guidance_rescale=config.guidance_rescale,
        refiner=second,
        guidance=guidance,
    )


def build_scheduler(name: SchedulerName, trained_with: Any) -> Any:
    """Build a sampling scheduler by name on the noise schedule that the model was trained with."""
    import diffusers

    kinds = {
        "dpmsolver_multistep": diffusers.DPMSolverMultistepScheduler,
        "ddim": diffusers.DDIMScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
        "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
        "unipc": diffusers.UniPCMultistepScheduler,
        "ddpm": diffusers.DDPMScheduler,
    }
    # Latents have no bounds to clip to; DDIM and DDPM would clip where a config says nothing.
    return kinds[name].from_config({"clip_sample": False, **trained_with})
