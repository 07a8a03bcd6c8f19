"""Stable Diffusion 1.5 and SDXL as training and generation both see them.

What conditions the UNet (text embeddings, SDXL's pooled embedding and time ids) is computed here
and nowhere else, so that a sampler asks for exactly what the trainer taught.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import ValueRangeError
from stages.components.diffusion.placeholder import expand
from stages.components.networks.weights import Family

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline
    from transformers import CLIPTokenizer

FROM_FOLDER = {"use_safetensors": True, "local_files_only": True}
# It returns black images for harmless slices.
NO_SAFETY_CHECKER = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}


@dataclass(frozen=True)
class BaseModel:
    """The parts of a pipeline, for training.

    `zeros_for_empty`: the pipeline's unconditional branch is a zero embedding (SDXL's default)
    instead of the encoded empty text, so a dropped caption must be one too.
    """

    family: Family
    tokenizers: "list[CLIPTokenizer]"
    text_encoders: list[nn.Module]
    unet: Any  # UNet2DConditionModel, or accelerate's wrapper of it
    vae: Any
    noise_scheduler: "DDPMScheduler"
    zeros_for_empty: bool


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told: prompt_embeds (batch, 77, width); SDXL: pooled (batch, width)."""

    prompt_embeds: Tensor
    pooled: Tensor | None


def torch_dtype(name: str) -> torch.dtype:
    """Return the compute dtype of a `Context`.

    Raises:
        ValueRangeError: Neither "float32" nor "bfloat16".
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise ValueRangeError(f"dtype {name!r} is unknown; expected one of {sorted(known)}")
    return known[name]


def load_pipeline(
    family: Family, folder: Path, *, vae_dir: Path | None, variant: str | None, dtype: torch.dtype
) -> "DiffusionPipeline":
    """Load a pipeline from a folder: safetensors only, no remote code, no network.

    Raises:
        ValueRangeError: The VAE has a latent normalisation that the pipelines do not undo.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    quieten()
    given: dict[str, Any] = {**FROM_FOLDER, "dtype": dtype, "variant": variant}
    if vae_dir is not None:
        given["vae"] = load_vae(vae_dir, None).to(dtype)
    pipeline: DiffusionPipeline
    if family == "sd":
        pipeline = StableDiffusionPipeline.from_pretrained(folder, **given, **NO_SAFETY_CHECKER)
    else:
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder, **given, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    require_known_latents(pipeline.vae, family, str(vae_dir or folder))
    return pipeline


def load_vae(folder: Path, variant: str | None) -> "AutoencoderKL":
    """Load a VAE from its own folder, frozen, float32, in evaluation mode."""
    from diffusers import AutoencoderKL

    quieten()
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(
        folder, dtype=torch.float32, variant=variant, **FROM_FOLDER
    )
    return vae.requires_grad_(False).eval()


def quieten() -> None:
    """Leave progress bars and notes of the libraries out of ours; their errors stay."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def require_known_latents(vae: Any, family: Family, where: str) -> None:
    """Refuse a latent normalisation that the diffusers pipelines would not undo when decoding.

    Both pipelines divide by `scaling_factor`; SDXL's also knows `latents_mean` and `latents_std`,
    for four channels only. Anything else would train on latents that no plain pipeline decodes.

    Raises:
        ValueRangeError: The VAE's config has such a normalisation.
    """
    config = vae.config
    advice = "Fold it into the VAE's quant_conv and post_quant_conv."
    if config.get("shift_factor"):
        raise ValueRangeError(
            f"VAE {where} has shift_factor {config.shift_factor!r}, which the pipelines ignore. "
            f"{advice}"
        )
    if config.get("latents_mean") is None and config.get("latents_std") is None:
        return
    if family == "sd" or config.latent_channels != 4:
        raise ValueRangeError(
            f"VAE {where} has latents_mean or latents_std for {config.latent_channels} channels, "
            f"which the {family} pipeline does not undo. {advice}"
        )


def parts_of(pipeline: "DiffusionPipeline") -> BaseModel:
    """Take a pipeline apart; every weight is frozen and in evaluation mode."""
    from diffusers import DDPMScheduler

    family: Family = "sdxl" if hasattr(pipeline, "text_encoder_2") else "sd"
    suffixes = ("", "_2") if family == "sdxl" else ("",)
    encoders = [getattr(pipeline, f"text_encoder{suffix}") for suffix in suffixes]
    tokenizers = [getattr(pipeline, f"tokenizer{suffix}") for suffix in suffixes]
    for module in (pipeline.unet, pipeline.vae, *encoders):
        module.requires_grad_(False)
        module.eval()
    return BaseModel(
        family=family,
        tokenizers=tokenizers,
        text_encoders=encoders,
        unet=pipeline.unet,
        vae=pipeline.vae,
        noise_scheduler=DDPMScheduler.from_config(pipeline.scheduler.config),
        zeros_for_empty=bool(pipeline.config.get("force_zeros_for_empty_prompt", False)),
    )


def assemble(base: BaseModel, scheduler: Any) -> "DiffusionPipeline":
    """Put the parts of a model back together, with a scheduler to sample with."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    parts = {
        "vae": base.vae,
        "unet": base.unet,
        "text_encoder": base.text_encoders[0],
        "tokenizer": base.tokenizers[0],
        "scheduler": scheduler,
    }
    pipeline: DiffusionPipeline
    if base.family == "sd":
        pipeline = StableDiffusionPipeline(**parts, **NO_SAFETY_CHECKER)
    else:
        pipeline = StableDiffusionXLPipeline(
            **parts,
            text_encoder_2=base.text_encoders[1],
            tokenizer_2=base.tokenizers[1],
            force_zeros_for_empty_prompt=base.zeros_for_empty,
            add_watermarker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encode_prompts(base: BaseModel, texts: Sequence[str]) -> Conditioning:
    """Encode texts as the diffusers pipelines do; training and generation both call this.

    SD: the last hidden state (batch, 77, width). SDXL: the penultimate hidden states of both
    encoders, concatenated, and the pooled projection of the second. Texts beyond 77 tokens are
    cut. An empty text becomes zeros where the pipeline's unconditional branch is zeros. The
    placeholder of a textual inversion, where a text opens with one, becomes all its tokens.
    Deterministic; gradients flow if the encoders' weights require them.
    """
    hidden: list[Tensor] = []
    pooled: Tensor | None = None
    for tokenizer, encoder in zip(base.tokenizers, base.text_encoders, strict=True):
        tokens = tokenizer(
            [expand(tokenizer, text) for text in texts],
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        out = encoder(tokens.to(next(encoder.parameters()).device), output_hidden_states=True)
        if base.family == "sd":
            hidden.append(out.last_hidden_state)
        else:
            hidden.append(out.hidden_states[-2])
            pooled = out[0]  # of the last encoder: its text projection (batch, width)
    embeds = torch.cat(hidden, dim=-1)
    if base.zeros_for_empty:
        keep = torch.tensor([text != "" for text in texts], device=embeds.device)
        embeds = embeds * keep[:, None, None]
        pooled = None if pooled is None else pooled * keep[:, None]
    return Conditioning(embeds, pooled)


def time_ids(resolution: int, crops: Tensor) -> Tensor:
    """Return SDXL's size conditioning (batch, 6): original size, crop (top, left), target size.

    `crops`: int64 (batch, 2) in px. The pipeline's default at generation is the whole image at its
    own size, hence `resolution` twice and a crop of (0, 0).
    """
    size = torch.full_like(crops, resolution)
    return torch.cat([size, crops, size], dim=1)


def predict(
    base: BaseModel,
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    ids: Tensor,
) -> Tensor:
    """Run the UNet: noisy latents (batch, channel, h, w) to its prediction, the same shape."""
    added = None
    if base.family == "sdxl":
        added = {
            "text_embeds": conditioning.pooled,
            "time_ids": ids.to(conditioning.prompt_embeds.dtype),
        }
    output: Tensor = base.unet(
        noisy,
        timesteps,
        encoder_hidden_states=conditioning.prompt_embeds,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return output
