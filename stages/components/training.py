"""The arithmetic of fine-tuning: rates, targets, draws, clipping; no model, no files.

Steps are optimiser steps and count from 1. Whatever is random in a step is drawn from
(run seed, step, sample), never from a stream, so a resumed run needs no replay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.seeding import derive_seed, numpy_rng

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, max_steps: int, schedule: str
) -> float:
    """Return the rate of optimiser step `step`, in 1..max_steps.

    Linear warm-up that reaches `peak` at `warmup_steps`, then ("cosine") half a cosine that
    reaches 0 at `max_steps`, or ("constant") `peak`.

    Example:
        >>> rate = dict(peak=1e-4, warmup_steps=50, max_steps=500, schedule="cosine")
        >>> learning_rate(50, **rate), learning_rate(275, **rate), learning_rate(500, **rate)
        (0.0001, 5e-05, 0.0)
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))


def training_target(
    noise_scheduler: "DDPMScheduler", latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """Return what the UNet should predict, the shape of `latents`: noise or velocity."""
    if noise_scheduler.config.prediction_type == "epsilon":
        return noise
    velocity: Tensor = noise_scheduler.get_velocity(latents, noise, timesteps)
    return velocity


def sample_losses(
    prediction: Tensor, target: Tensor, weights: Tensor, emphasis: Tensor | None = None
) -> Tensor:
    """Return each sample's weighted mean squared error, float32 (batch,).

    `emphasis`, (batch, h, w), multiplies the squared error of each cell; None: 1 everywhere.
    """
    squared = (prediction.float() - target.float()).square()
    if emphasis is not None:
        squared = squared * emphasis[:, None]
    return squared.mean(dim=(1, 2, 3)) * weights


@dataclass(frozen=True)
class Draw:
    """All the randomness of one sample in one optimiser step.

    Attributes:
        crop: Which cached crop, in 0..K-1.
        posterior: Standard normal (channel, h, w): latents are mean + std * posterior.
        noise: Standard normal (channel, h, w).
        timestep: In 0..num_timesteps-1.
        drops_caption: The caption is replaced by the empty one (classifier-free guidance).
    """

    crop: int
    posterior: Tensor
    noise: Tensor
    timestep: int
    drops_caption: bool


def draw_sample(
    key: Sequence[int | str],
    *,
    shape: Sequence[int],
    num_crops: int,
    num_timesteps: int,
    caption_dropout: float,
) -> Draw:
    """Draw one sample's randomness from `derive_seed(*key)`, on the CPU whatever the device."""
    generator = torch.Generator().manual_seed(derive_seed(*key))
    crop = int(torch.randint(num_crops, (), generator=generator))
    timestep = int(torch.randint(num_timesteps, (), generator=generator))
    dropped = bool(torch.rand((), generator=generator) < caption_dropout)
    posterior = torch.randn(*shape, generator=generator)
    noise = torch.randn(*shape, generator=generator)
    return Draw(crop, posterior, noise, timestep, dropped)


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """Return the order of one epoch, a permutation of range(count) drawn from (seed, epoch)."""
    return tuple(numpy_rng(seed, "order", epoch).permutation(count).tolist())


def samples_of_step(seed: int, step: int, batch: int, count: int) -> list[tuple[int, int]]:
    """List (epoch, sample) for the `batch` samples of an optimiser step, a pure function.

    Epochs follow one another without a gap: no sample is skipped, and a step may span two.
    """
    first = (step - 1) * batch
    places = [divmod(position, count) for position in range(first, first + batch)]
    return [(epoch, epoch_order(seed, epoch, count)[place]) for epoch, place in places]


def spread_timesteps(count: int, num_timesteps: int) -> list[int]:
    """Return `count` fixed timesteps in the middle of equal shares of 0..num_timesteps-1.

    Spread evenly, they make the held-out loss vary less than random ones would.
    """
    return [int((index + 0.5) * num_timesteps / count) for index in range(count)]


def stratified_timesteps(seed: int, step: int, count: int, num_timesteps: int) -> list[int]:
    """Draw a step's timesteps, one from each of `count` equal shares of 0..num_timesteps-1.

    In random order and drawn from (seed, step), so that every sample's timestep is uniform.
    """
    rng = numpy_rng(seed, "timesteps", step)
    places = (rng.permutation(count) + rng.random(count)) * num_timesteps / count
    return [int(place) for place in places]


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale gradients in place to a joint norm of at most `max_norm`; return the norm before.

    Takes a sequence, not an iterator: one that an optimiser has already consumed would clip
    nothing and report 0.

    Raises:
        TrainingError: No parameter has a gradient, so nothing would be learnt.
    """
    if not any(parameter.grad is not None for parameter in parameters):
        raise TrainingError(f"none of {len(parameters)} trained tensors received a gradient")
    return float(nn.utils.clip_grad_norm_(parameters, max_norm))
