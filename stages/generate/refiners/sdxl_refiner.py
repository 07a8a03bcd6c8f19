"""The SDXL refiner 1.0, trained on the last fifth of the noise levels; CreativeML OpenRAIL++-M.

Source: Podell et al., "SDXL", 2023, section 2.5; the split of the steps is the one that diffusers
calls "ensemble of expert denoisers" (`denoising_end` and `denoising_start`).
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.contracts import Licence, Section
from pipeline.downloads import Download
from pipeline.errors import ValueRangeError
from stages.components.networks import weights

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

PARTS = ("unet", "text_encoder_2", "tokenizer_2", "scheduler")  # the VAE is the base model's
CLASSES = ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLPipeline")
LICENCE = Licence(
    part="SDXL refiner 1.0", terms="CreativeML Open RAIL++-M; excludes giving medical advice."
)
REMEDY = "Licence: https://huggingface.co/stabilityai/stable-diffusion-xl-refiner-1.0"


class Settings(Section):
    """Which weights, and when they take over."""

    model: str = "stabilityai/stable-diffusion-xl-refiner-1.0"  # or a folder in the hub's layout
    revision: str | None = None  # hub only: branch, tag or commit
    variant: str | None = None  # "fp16": files named *.fp16.safetensors
    start: float = Field(0.8, gt=0, lt=1)  # share of the noise levels that the base model does


def check(settings: Settings) -> list[str]:
    """List all that keeps the refiner from loading, each with what to do; loads no weights."""
    lines = weights.problems(settings.model, settings.revision, PARTS, settings.variant, REMEDY)
    folder = weights.find_folder(settings.model, settings.revision)
    if lines or folder is None:
        return lines
    index = folder / "model_index.json"
    if not index.is_file():
        return [f"{index} is missing, so {folder} is no diffusers pipeline"]
    name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if name not in CLASSES:
        return [f"{index} names the class {name!r}, expected one of {list(CLASSES)}"]
    return []


def downloads(settings: Settings) -> list[Download]:
    """List what of the hub the refiner is made of; nothing where a folder is named."""
    if weights.is_folder_name(settings.model):
        return []
    return [weights.hub_files(settings.model, settings.revision, PARTS, settings.variant, LICENCE)]


def input_digest(settings: Settings) -> str:
    """Identify the weights, for freshness."""
    return weights.digest_of(settings.model, settings.revision, settings.variant)


def load_pipeline(
    settings: Settings,
    base: "DiffusionPipeline",
    *,
    device: "torch.device | str",
    dtype: "torch.dtype",
) -> Any:
    """Load the image-to-image pipeline that goes on from the base model's latents.

    Raises:
        MissingWeightsError: Something is not on this machine; says what to do.
        ValueRangeError: It was trained on latents of another number of channels.
    """
    from diffusers import StableDiffusionXLImg2ImgPipeline

    from stages.components.diffusion.base_model import FROM_FOLDER, quieten

    weights.require(check(settings))
    folder = weights.find_folder(settings.model, settings.revision)
    assert isinstance(folder, Path)
    quieten()
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        folder,
        vae=base.vae,
        dtype=dtype,
        variant=settings.variant,
        add_watermarker=False,
        **FROM_FOLDER,
    )
    pipeline.set_progress_bar_config(disable=True)
    ours, theirs = base.unet.config.in_channels, pipeline.unet.config.in_channels
    if ours != theirs:
        raise ValueRangeError(
            f"refiner {settings.model!r} expects latents of {theirs} channels, and those of the "
            f"base model have {ours}; leave generate.refiner out, or name one made for it"
        )
    return pipeline.to(device)
