"""Maps of a classifier's explanations: what a network must offer, its score, the fill.

An explanation is a plug-in of `explanations/` with `CITATION` and

- `find_obstacle(network) -> str | None`: why this network cannot be explained so, None if it can;
- `explain(network, images, *, target, seed) -> (n, height, width)`: float64, not negative; what in
  each slice speaks for the class `target`. `network` is in eval mode, `images` float32
  (n, 3, height, width) in [-1, 1]. The map of a slice depends on that slice and the seed alone.
"""

from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

Maps: TypeAlias = NDArray[np.float64]  # (n, height, width), not negative
BLUR_SHARE = 0.1  # of the side: beyond it a blurred slice shows no lesion's edge, only brightness


@runtime_checkable
class Attentive(Protocol):
    """A network of tokens: the class token first, then a square of patches, row by row."""

    def attentions(self, images: "Tensor") -> "Sequence[Tensor]":
        """Return every layer's attention, (batch, head, to token, from token); rows sum to 1."""
        ...


@runtime_checkable
class Mapped(Protocol):
    """A network whose logits can be traced back to maps of features."""

    def trace_maps(self, images: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return the last maps (batch, feature, row, column), and the logits computed from them."""
        ...


def log_odds(logits: "Tensor", target: int) -> "Tensor":
    """Return the log odds of a class, (batch,), of logits (batch, class)."""
    import torch

    others = [number for number in range(logits.shape[1]) if number != target]
    return logits[:, target] - torch.logsumexp(logits[:, others], dim=1)


def blur(images: "Tensor") -> "Tensor":
    """Blur slices (n, channel, height, width) until no structure is left, to cover parts with.

    A Gaussian of `BLUR_SHARE` of the side, edges repeated: a covered part keeps its brightness, so
    that covering adds no edge of its own.
    """
    import torch

    sigma = BLUR_SHARE * images.shape[-1]
    smooth = ndimage.gaussian_filter(
        images.cpu().numpy(), sigma=(0, 0, sigma, sigma), mode="nearest"
    )
    return torch.from_numpy(smooth).to(images)


def enlarge(grid: "Tensor", size: tuple[int, int], mode: str) -> Maps:
    """Enlarge maps (n, row, column) to (n, height, width), mode "nearest" or "bilinear"."""
    import torch.nn.functional as F

    large = F.interpolate(grid.double()[:, None], size, mode=mode)[:, 0]
    maps: Maps = large.detach().cpu().numpy()
    return maps


def square_of(tokens: "Tensor") -> "Tensor":
    """Lay a value of each patch (n, patch) out as a square (n, row, column)."""
    side = round(tokens.shape[1] ** 0.5)
    square: Tensor = tokens.unflatten(1, (side, side))
    return square


def needs_attention(network: "nn.Module") -> str | None:
    """Say that a network has no attention to show; None if it has."""
    if isinstance(network, Attentive):
        return None
    return f"{type(network).__name__} has no attention of a class token"
