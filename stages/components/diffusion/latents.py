"""Latents of a frozen VAE, normalised the way the pipelines' decoding undoes it."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ValueRangeError
from stages.components.imaging.pixels import to_float


def normalisation(vae: Any) -> tuple[Tensor | float, Tensor | float]:
    """Return (offset, scale): normalised latents are (z - offset) * scale.

    The inverse of the pipelines' decoding: z = latents / scaling_factor, and with `latents_mean`
    and `latents_std` in the VAE's config z = latents * std / scaling_factor + mean.
    """
    config = vae.config
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return 0.0, float(config.scaling_factor)
    mean = torch.tensor(config.latents_mean, dtype=torch.float32).view(1, -1, 1, 1)
    std = torch.tensor(config.latents_std, dtype=torch.float32).view(1, -1, 1, 1)
    return mean, config.scaling_factor / std


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decode normalised latents (n, channel, h, w) as the pipelines do, in the VAE's own dtype.

    Differentiable. Returns pixels (n, 3, 8 h, 8 w), about [-1, 1] and not clipped to it.
    """
    offset, scale = (
        value.to(latents.device) if isinstance(value, Tensor) else value
        for value in normalisation(vae)
    )
    pixels: Tensor = vae.decode(latents.to(vae.dtype) / scale + offset, return_dict=False)[0]
    return pixels


def encode_images(vae: Any, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Encode (n, height, width, 3) uint8 to the normalised posterior's mean and std.

    Returns:
        Two float32 tensors (n, channel, height / 8, width / 8) on the CPU. Deterministic.

    Raises:
        ValueRangeError: The VAE gave NaN or infinity (SDXL's own VAE does in fp16).
    """
    first = next(vae.parameters())
    pixels = torch.from_numpy(to_float(images)).permute(0, 3, 1, 2).to(first.device, first.dtype)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    offset, scale = normalisation(vae)
    mean = (posterior.mean.float().cpu() - offset) * scale
    std = posterior.std.float().cpu() * scale
    if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise ValueRangeError(
            f"the VAE gave latents that are not finite, in {first.dtype}; use float32, bfloat16 or "
            "the fp16-fix VAE"
        )
    return mean, std
