"""Classical augmentation of a batch: mirror, turn, scale, shift, gain and gamma; black stays black.

One affine resampling per slice (bilinear, black outside). Sagittal slices are mirrored too: the
class of a slice does not depend on where the nose points.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.seeding import numpy_rng


@dataclass(frozen=True)
class Ranges:
    """How far a slice may be changed; every value in a range is as likely as any other."""

    max_turn_deg: float = 10.0
    scales: tuple[float, float] = (0.9, 1.1)
    max_shift: float = 0.05  # of the side
    gains: tuple[float, float] = (0.9, 1.1)
    gammas: tuple[float, float] = (0.8, 1.25)


RANGES = Ranges()


def augment(images: Tensor, *, seed: int, ranges: Ranges = RANGES) -> Tensor:
    """Change every slice of a batch in its own way.

    Args:
        images: float32 (batch, channel, size, size) in [-1, 1], channels equal.
        seed: The only source of chance; torch's generator is not touched.
        ranges: How far.

    Returns:
        The same shape and range.
    """
    count = len(images)
    rng = numpy_rng(seed, "augment")
    angle = np.deg2rad(rng.uniform(-ranges.max_turn_deg, ranges.max_turn_deg, count))
    scale, mirror = rng.uniform(*ranges.scales, count), rng.choice([-1.0, 1.0], count)
    # Twice, because the grid spans [-1, 1].
    shift = 2 * rng.uniform(-ranges.max_shift, ranges.max_shift, (2, count))
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    rows = [[mirror * cosine, -sine, shift[0]], [mirror * sine, cosine, shift[1]]]
    theta = torch.from_numpy(np.asarray(rows).transpose(2, 0, 1)).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    shown = F.grid_sample((images + 1) / 2, grid, align_corners=False).clamp(0, 1)
    gain = torch.from_numpy(rng.uniform(*ranges.gains, count)).to(images)[:, None, None, None]
    gamma = torch.from_numpy(rng.uniform(*ranges.gammas, count)).to(images)[:, None, None, None]
    return (gain * shown**gamma).clamp(0, 1) * 2 - 1
