"""The tiny VAE, shared by both base models: AutoencoderKL f8, 12 latent channels, 128 px.

Trained on all phantoms with heavy augmentation, since it must also carry real slices that it never
sees. Loss: L1 on pixels and on a Laplacian pyramid, L1 on local standard deviation (texture), a
small KL term. No perceptual network: those that score a run are.

A linear map of 8 x 8 blocks (PCA) keeps real slices at 25.1 dB with 8 numbers a block, 26.9 with
12 and 28.3 with 16, hence 12.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.components.networks.training import Losses, describe, fit

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LATENT_CHANNELS = 12
VARIANCE_POWER = (
    0.5  # 0: white latents; 1: a latent's variance is its share of the pixels' variance
)


@dataclass(frozen=True)
class VaeTraining:
    """Optimisation settings; every count is in optimiser steps."""

    seed: int = 1
    steps: int = 6000
    batch_size: int = 8
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-3
    max_grad_norm: float = 1.0
    laplacian_weight: float = 1.0
    texture_weight: float = 0.2
    kl_weight: float = 2e-4
    checkpoint_every: int = 100


def new_vae(size: int) -> "AutoencoderKL":
    """Build the network with random weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 48, 128),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        mid_block_add_attention=False,
        sample_size=size,
    )


def laplacian_l1(real: Tensor, made: Tensor, levels: int = 3) -> Tensor:
    """Return the mean L1 distance of Laplacian pyramids; (batch, channel, height, width)."""
    total = torch.zeros((), device=real.device)
    difference = made - real
    for level in range(levels):
        low = F.avg_pool2d(difference, 2)
        high = difference - F.interpolate(low, scale_factor=2, mode="bilinear")
        total = total + high.abs().mean() * 2.0**-level
        difference = low
    return total


def local_std(images: Tensor) -> Tensor:
    """Return the standard deviation in 5 x 5 windows, as measured by box means."""
    mean = F.avg_pool2d(images, 5, stride=2)
    return (F.avg_pool2d(images.square(), 5, stride=2) - mean.square()).clamp_min(1e-5).sqrt()


def augment(images: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """Vary phantom slices far beyond the phantoms: (batch, 1, h, w) in [0, 1] -> size px, [-1, 1].

    Random crop and zoom, flips, gamma, contrast, texture, sharpening, and cut-and-paste mosaics of
    slices of the same batch (straight, sharp borders such as real files have).
    """
    views = []
    full = images.shape[-1]
    for image in images:
        side = full if rng.random() < 0.35 else int(rng.integers(int(0.45 * full), full + 1))
        top, left = rng.integers(0, full - side + 1, 2)
        crop = image[None, :, top : top + side, left : left + side]
        crop = F.interpolate(
            crop, size=(size, size), mode="bicubic", antialias=True, align_corners=False
        )
        if rng.random() < 0.5:
            crop = crop.flip(3)
        if rng.random() < 0.25:
            crop = crop.transpose(2, 3)
        if rng.random() < 0.1:
            crop = crop.flip(2)
        views.append(crop)
    batch = torch.cat(views).clamp(0, 1)
    n = len(batch)

    def draw(low: float, high: float) -> Tensor:
        values = rng.uniform(low, high, (n, 1, 1, 1)).astype(np.float32)
        return torch.from_numpy(values)

    def some(share: float) -> Tensor:
        return torch.from_numpy((rng.random((n, 1, 1, 1)) < share).astype(np.float32))

    for _ in range(2):  # mosaics: a rectangle of each slice comes from another
        if rng.random() < 0.35:
            x, y = np.sort(rng.integers(0, size, 2)), np.sort(rng.integers(0, size, 2))
            batch[:, :, y[0] : y[1], x[0] : x[1]] = batch.roll(1, 0)[:, :, y[0] : y[1], x[0] : x[1]]
    batch = batch ** torch.exp(draw(-0.6, 0.6))
    sharp = batch - F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    batch = batch + some(0.5) * draw(0, 2.5) * sharp
    texture = torch.zeros_like(batch)
    for scale in (1, 2, 4, 8):
        noise = torch.from_numpy(
            rng.standard_normal((n, 1, size // scale, size // scale), dtype=np.float32)
        )
        if scale > 1:
            noise = F.interpolate(noise, size=(size, size), mode="bicubic")
        texture = texture + noise * draw(0, 1)
    batch = batch + some(0.5) * draw(0, 0.10) * texture * (0.1 + batch)
    batch = batch * draw(0.6, 1.15) + some(0.15) * draw(0, 0.25)
    return batch.clamp(0, 1) * 2 - 1


def compute_losses(
    vae: "AutoencoderKL", real: Tensor, rng: np.random.Generator, settings: VaeTraining
) -> Losses:
    """Return the loss of reconstructing `real`, float32 (n, 3, h, w) in [-1, 1]; `rng` is consumed.

    Shown beside it: the squared error, of the range 2.
    """
    posterior = vae.encode(real).latent_dist
    noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32))
    made = vae.decode(posterior.mean + posterior.std * noise.to(real.device)).sample
    # In this order: gradients of `made` are summed in the reverse one, and floats mind.
    pixel = (made - real).abs().mean()
    pyramid = laplacian_l1(real, made)
    texture = local_std(real.mean(1, keepdim=True)) - local_std(made.mean(1, keepdim=True))
    loss = (
        pixel
        + settings.laplacian_weight * pyramid
        + settings.texture_weight * texture.abs().mean()
        + settings.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
    )
    return Losses(loss, {"loss": loss, "squared error": (made - real).detach().square().mean()})


def word_means(means: Mapping[str, float]) -> str:
    """Word the losses of the last steps, the squared error as PSNR.

    >>> word_means({"loss": 0.5, "squared error": 0.04})
    'loss 0.5000, training PSNR 20.00 dB'
    """
    psnr = 10 * np.log10(4 / max(means["squared error"], 1e-12))
    return f"loss {means['loss']:.4f}, training PSNR {psnr:.2f} dB"


def train(
    fine: NDArray[np.uint8], size: int, folder: Path, settings: VaeTraining, device: str,
    progress: Callable[[str], None],
) -> "AutoencoderKL":  # fmt: skip
    """Train on slices (n, h, w), or go on where the checkpoint in `folder` stands.

    Raises:
        TrainingError: The loss is not finite, or the checkpoint does not fit this VAE.
    """
    torch.manual_seed(settings.seed)
    vae = new_vae(size).to(device, memory_format=torch.channels_last)

    def compute(step: int, rng: np.random.Generator) -> Losses:
        picked = rng.choice(len(fine), settings.batch_size, replace=False)
        images = torch.from_numpy(fine[picked])[:, None].float() / 255
        real = augment(images, size, rng).expand(-1, 3, -1, -1).to(device)
        real = real.contiguous(memory_format=torch.channels_last)
        return compute_losses(vae, real, rng, settings)

    fit(
        {"model": vae},
        compute,
        settings,
        name="vae",
        checkpoint=folder / "vae.ckpt",
        architecture=describe(vae.config),
        progress=progress,
        word=word_means,
    )
    return vae.eval()


def to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """Turn grey slices (n, h, w) into what a VAE takes, float32 (n, 3, h, w) in [-1, 1]."""
    return (torch.from_numpy(images)[:, None].float() / 127.5 - 1).expand(-1, 3, -1, -1)


@torch.no_grad()
def psnr_db(vae: "AutoencoderKL", images: NDArray[np.uint8]) -> float:
    """Return the mean over slices of the PSNR of reconstructions (posterior mean); (n, h, w)."""
    values = []
    for start in range(0, len(images), 16):
        real = to_pixels(images[start : start + 16]).to(vae.device)
        made = vae.decode(vae.encode(real).latent_dist.mean).sample.clamp(-1, 1)
        error = ((made - real) / 2).square().mean((1, 2, 3)).clamp_min(1e-12)
        values.append(-10 * torch.log10(error))
    return float(torch.cat(values).mean())


@torch.no_grad()
def order_latents(vae: "AutoencoderKL", images: NDArray[np.uint8]) -> None:
    """Rotate and scale the latents inside the two 1 x 1 convolutions; reconstructions stay.

    In units of pixel change (the decoder's mean squared Jacobian G), the principal axes of the
    latents become the channels, coarse ones first. A channel's standard deviation is its share of
    the pixels' variance to the power `VARIANCE_POWER / 2`, so that noise hides details before it
    hides the shape of the head, as in pixel-space diffusion. `scaling_factor` makes the mean
    variance 1. The posterior's variance becomes one number a channel.
    """
    channels = vae.config.latent_channels
    generator = torch.Generator().manual_seed(0)
    means, variances, gram = [], [], torch.zeros(channels, channels, dtype=torch.float64)
    for start in range(0, len(images), 16):
        posterior = vae.encode(to_pixels(images[start : start + 16]).to(vae.device)).latent_dist
        latents = posterior.mean
        means.append(latents.permute(0, 2, 3, 1).reshape(-1, channels).double().cpu())
        variances.append(posterior.var.permute(0, 2, 3, 1).reshape(-1, channels).double().cpu())
        if start < 32:
            base = vae.decode(latents).sample
            signs = torch.randint(0, 2, latents[:, :1].shape, generator=generator) * 2.0 - 1
            step = 0.05 * signs.to(vae.device)
            moved = []
            for channel in range(channels):
                shifted = latents.clone()
                shifted[:, channel : channel + 1] += step
                moved.append(((vae.decode(shifted).sample - base) / 0.05).flatten().double().cpu())
            stacked = torch.stack(moved)
            gram += stacked @ stacked.T / latents[:, :1].numel()
    z = torch.cat(means)
    centre = z.mean(0)
    values, vectors = torch.linalg.eigh(gram)
    root = vectors @ torch.diag(values.clamp_min(values.max() * 1e-6).sqrt()) @ vectors.T
    spread = root @ torch.cov((z - centre).T) @ root.T
    energy, axes = torch.linalg.eigh(spread)
    energy, axes = energy.flip(0), axes.flip(1)  # large first
    scale = energy.pow(VARIANCE_POWER / 2 - 0.5)
    forward = torch.diag(scale) @ axes.T @ root  # z' = forward (z - centre)
    backward = torch.linalg.inv(forward)
    noise = (forward.square() @ torch.cat(variances).mean(0)).log()
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight.double().cpu(), quant.bias.double().cpu()
    quant.weight[:channels] = torch.einsum("ij,jkhw->ikhw", forward, weight[:channels])
    quant.bias[:channels] = forward @ (bias[:channels] - centre)
    quant.weight[channels:] = 0
    quant.bias[channels:] = noise.to(quant.bias)
    old = post.weight.double().cpu()[:, :, 0, 0]
    post.bias += (old @ centre).to(post.bias)
    post.weight[:, :, 0, 0] = (old @ backward).to(post.weight)
    mean_variance = float(energy.pow(VARIANCE_POWER).mean())
    vae.register_to_config(scaling_factor=mean_variance**-0.5)
