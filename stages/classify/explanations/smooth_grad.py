"""SmoothGrad: the gradient of the class by grey value, a mean over noisy copies of the slice.

Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017: Gaussian noise of 15 %
of the slice's range, 25 copies; the absolute value is taken of the mean.
"""

from typing import TYPE_CHECKING

import numpy as np

from pipeline.seeding import numpy_rng
from stages.classify.maps import Maps, log_odds

if TYPE_CHECKING:
    from torch import Tensor, nn

CITATION = "Smilkov et al., 2017"
NUM_COPIES = 25
NOISE_SHARE = 0.15  # of the range of a slice's grey values


def find_obstacle(network: "nn.Module") -> str | None:
    """Every network has gradients."""
    return None


def explain(network: "nn.Module", images: "Tensor", *, target: int, seed: int) -> Maps:
    """Map the size of the mean gradient; the same noise, scaled to each slice, for all slices."""
    import torch

    reach = (images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3)))[:, None, None, None]
    total = torch.zeros_like(images[:, 0], dtype=torch.float64)
    for copy in range(NUM_COPIES):
        drawn = numpy_rng(seed, "smooth grad", copy).standard_normal(images.shape[-2:])
        noise = torch.from_numpy(drawn.astype(np.float32)).to(images)  # one grey channel
        with torch.enable_grad():
            noisy = (images + NOISE_SHARE * reach * noise).detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(log_odds(network(noisy), target).sum(), noisy)
        total += gradient.double().sum(dim=1)
    maps: Maps = (total / NUM_COPIES).abs().cpu().numpy()
    return maps
