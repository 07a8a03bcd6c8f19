"""Classical augmentation of a batch: mirror, turn, scale, shift, gain and gamma; black stays black.

One affine resampling per slice (bilinear, black outside). Sagittal slices are mirrored too: the
class of a slice does not depend on where the nose points.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.seeding import numpy_rng

MAX_TURN_DEG = 10.0
SCALES = (0.9, 1.1)
MAX_SHIFT = 0.05  # of the side
GAINS = (0.9, 1.1)
GAMMAS = (0.8, 1.25)


def augment(images: Tensor, *, seed: int) -> Tensor:
    """Change every slice of a batch in its own way.

    Args:
        images: float32 (batch, channel, size, size) in [-1, 1], channels equal.
        seed: The only source of chance; torch's generator is not touched.

    Returns:
        The same shape and range.
    """
    count = len(images)
    rng = numpy_rng(seed, "augment")
    angle = np.deg2rad(rng.uniform(-MAX_TURN_DEG, MAX_TURN_DEG, count))
    scale, mirror = rng.uniform(*SCALES, count), rng.choice([-1.0, 1.0], count)
    shift = 2 * rng.uniform(-MAX_SHIFT, MAX_SHIFT, (2, count))  # the grid spans [-1, 1]
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    rows = [[mirror * cosine, -sine, shift[0]], [mirror * sine, cosine, shift[1]]]
    theta = torch.from_numpy(np.asarray(rows).transpose(2, 0, 1)).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    shown = F.grid_sample((images + 1) / 2, grid, align_corners=False).clamp(0, 1)
    gain = torch.from_numpy(rng.uniform(*GAINS, count)).to(images)[:, None, None, None]
    gamma = torch.from_numpy(rng.uniform(*GAMMAS, count)).to(images)[:, None, None, None]
    return (gain * shown**gamma).clamp(0, 1) * 2 - 1
