"""Random draws of training: noise, timesteps and order, keyed by (seed, step, sample)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.seeding import derive_seed, numpy_rng


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
