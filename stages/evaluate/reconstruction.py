"""Real slices passed through a base model's VAE: the best that any adapter of it could reach."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from pipeline import registry
from pipeline.contracts import DISTANCE, VAE, PluginConfig
from pipeline.errors import ValueRangeError
from stages.components.features.extraction import in_batches
from stages.components.imaging.pixels import RgbBatch, RgbImage, to_float, to_uint8
from stages.components.statistics.estimates import MetricSpec

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Pass = Callable[[Iterator[RgbImage]], Iterator[RgbImage]]
VAE_BATCH = 4  # slices at once; at 512 px each takes about 1 GiB
MAX_PSNR_DB = 100.0  # given to equal slices, whose PSNR is infinite
PSNR = MetricSpec(
    key="psnr",
    higher_is_better=True,
    least_n=2,
    citation="mean over slices of 10 log10(255^2 / mean squared error) on uint8, in dB",
    names={"psnr": "PSNR (dB)"},
    section=DISTANCE,
)


def load_vae(plugin: PluginConfig, device: str) -> "AutoencoderKL":
    """Load a base model's VAE alone, float32.

    Raises:
        UnknownPluginError: No such plug-in.
        MissingWeightsError: Its weights are not on this machine.
    """
    module = registry.find(registry.BASE_MODELS, plugin.name)
    settings = module.Settings.model_validate(plugin.settings)
    return cast("AutoencoderKL", module.load_vae(settings, device=device))


def iter_reconstructions(
    vae: "AutoencoderKL", images: Iterator[RgbImage], psnr_db: list[float]
) -> Iterator[RgbImage]:
    """Yield slices encoded to the posterior's mode and decoded; deterministic.

    Args:
        vae: In float32.
        images: uint8 (size, size, 3), all of one size, a multiple of 8.
        psnr_db: Gets the PSNR of each slice, in order, in dB.

    Raises:
        ValueRangeError: The VAE gave NaN or infinity.
    """
    import torch

    device = next(vae.parameters()).device
    for batch in in_batches(images, VAE_BATCH):
        real = np.stack(batch)
        pixels = torch.from_numpy(to_float(real)).permute(0, 3, 1, 2).to(device)
        with torch.inference_mode():
            decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        if not bool(torch.isfinite(decoded).all()):
            raise ValueRangeError(
                f"the VAE gave pixels that are not finite in {decoded.dtype}; check its weights"
            )
        made = to_uint8(decoded.clamp(-1, 1).permute(0, 2, 3, 1).cpu().numpy())
        psnr_db += compute_psnr(real=real, made=made)
        yield from made


def list_passes(bases: Mapping[str, PluginConfig], device: str) -> dict[str, Pass]:
    """Return what passes images through each base model's VAE, by the name of its row.

    The VAE is loaded for each pass, which raises as `load_vae` and `iter_reconstructions` do.
    """

    def build(plugin: PluginConfig) -> Pass:
        return lambda images: iter_reconstructions(load_vae(plugin, device), images, [])

    return {f"{VAE}{name}": build(plugin) for name, plugin in bases.items()}


def compute_psnr(*, real: RgbBatch, made: RgbBatch) -> list[float]:
    """Return the PSNR in dB of each pair of uint8 images (n, height, width, 3)."""
    errors = ((real.astype(np.float64) - made) ** 2).mean(axis=(1, 2, 3))
    least = 255.0**2 / 10 ** (MAX_PSNR_DB / 10)
    return [float(10 * np.log10(255.0**2 / max(error, least))) for error in errors]
