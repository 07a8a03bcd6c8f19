"""Occlusion: how far the class falls while a window of the slice is covered.

The window is an eighth of the side and moves by half of itself; a pixel gets the mean over all
windows that cover it, and nothing where covering it raises the class. What covers is the slice
itself, blurred: a flat grey window would be a shape of its own.

Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014; the
blurred cover as in Fong and Vedaldi, ICCV 2017.
"""

from typing import TYPE_CHECKING

import numpy as np

from stages.classify.maps import Maps, blur, log_odds

if TYPE_CHECKING:
    from torch import Tensor, nn

CITATION = "Zeiler and Fergus, ECCV 2014"
WINDOW_SHARE = 8  # windows side by side


def find_obstacle(network: "nn.Module") -> str | None:
    """Every network can be asked again."""
    return None


def list_starts(side: int, window: int) -> list[int]:
    """List where windows start along a side; the last one ends with it."""
    starts = list(range(0, side - window + 1, max(1, window // 2)))
    return starts if starts[-1] == side - window else [*starts, side - window]


def explain(network: "nn.Module", images: "Tensor", *, target: int, seed: int) -> Maps:
    """Map the mean fall of the log odds over the windows; `seed` is not used."""
    import torch

    height, width = images.shape[-2:]
    window = max(1, min(height, width) // WINDOW_SHARE)
    cover = blur(images)
    total, times = np.zeros((len(images), height, width)), np.zeros((height, width))
    with torch.inference_mode():
        whole = log_odds(network(images), target)
        for top in list_starts(height, window):
            for left in list_starts(width, window):
                place = (slice(top, top + window), slice(left, left + window))
                covered = images.clone()
                covered[:, :, *place] = cover[:, :, *place]
                fall = (whole - log_odds(network(covered), target)).double().cpu().numpy()
                total[:, *place] += fall[:, None, None]
                times[place] += 1
    return np.maximum(total / times, 0.0)
