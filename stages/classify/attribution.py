"""Scores of attribution maps: their share inside the lesion, and the deletion curve.

**Share inside the lesion.** Of all attribution within the head, how much lies in the lesion. A map
that knows nothing has the share of the head that the lesion has; a map that merely prefers the
middle of the head may have more. Chance is therefore the same lesion moved to other places of its
head, all of them weighing the same; p is the share of random moves of all lesions that do as well.

**Deletion.** The head's pixels are covered (by the blurred slice), the most attributed ones first,
and the probability of the class is followed down; the area under that curve is small where the map
found what the classifier looks at. Beside it stands the area for blotches in random order.

Source: Petsiuk et al., "RISE: Randomized input sampling for explanation of black-box models", BMVC
2018 (deletion); Phipson and Smyth, "Permutation p-values should never be zero", 2010.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal import fftconvolve

from stages.classify.maps import Maps, blur
from stages.components.statistics.bootstrap import FloatArray
from stages.components.statistics.proportions import BoolArray

if TYPE_CHECKING:
    from torch import Tensor, nn

NUM_STEPS = 20  # of the deletion curve, each of a twentieth of the head
NUM_BLOTCHES = 3  # random orders of deletion for each slice
CELLS = 8  # blotches side by side
LEAST_INSIDE = 0.95  # of a moved lesion must lie in the head, or as much as of the lesion itself


def weigh(attribution: FloatArray, head: BoolArray) -> FloatArray:
    """Return attribution (height, width) within the head as shares of 1; uniform where it is 0."""
    inside = np.where(head, attribution, 0.0)
    total = inside.sum()
    shares: FloatArray = inside / total if total > 0 else head / head.sum()
    return shares


def moved_shares(attribution: FloatArray, lesion: BoolArray, head: BoolArray) -> FloatArray:
    """Return the attribution's share inside the lesion at every place of the head it fits into.

    Args:
        attribution: Not negative, (height, width).
        lesion: At least one pixel, (height, width).
        head: The same; a lesion beyond it counts for nothing.

    Returns:
        The lesion's own place first, then all others, (1 + places,).
    """
    shape = np.asarray(lesion[::-1, ::-1], dtype=np.float64)
    shares = fftconvolve(weigh(attribution, head), shape, mode="full")
    room = fftconvolve(head.astype(np.float64), shape, mode="full") / lesion.sum()
    home = (lesion.shape[0] - 1, lesion.shape[1] - 1)
    fits = room >= min(LEAST_INSIDE, room[home]) - 1e-9
    fits[home] = False
    places: FloatArray = np.clip(np.concatenate([shares[home][None], shares[fits]]), 0.0, 1.0)
    return places


def area_share(lesion: BoolArray, head: BoolArray) -> float:
    """Return the share of the head's area that the lesion has."""
    return float((lesion & head).sum() / head.sum())


def chance_of_moves(
    places: list[FloatArray], *, num_draws: int, rng: np.random.Generator
) -> tuple[FloatArray, float]:
    """Move every lesion at random, again and again; return the mean shares, and the p of none.

    Args:
        places: Of each slice, what `moved_shares` returned.
        num_draws: How often all lesions are moved.
        rng: Of the places, each as likely as any other, the lesion's own among them.

    Returns:
        Mean shares (num_draws,), and the share of draws, the sample itself among them, that are at
        least as large as the sample's mean.
    """
    moved = np.stack([rng.choice(shares, num_draws) for shares in places])
    means: FloatArray = moved.mean(axis=0)
    observed = float(np.mean([shares[0] for shares in places]))
    return means, float((1 + (means >= observed - 1e-12).sum()) / (1 + num_draws))


def draw_blotches(count: int, size: tuple[int, int], rng: np.random.Generator) -> Maps:
    """Draw maps of no meaning, as coarse as attributions are: (count, height, width)."""
    coarse = rng.random((count, CELLS, CELLS))
    factors = (1, size[0] / CELLS, size[1] / CELLS)
    large = ndimage.zoom(coarse, factors, order=1, grid_mode=True, mode="nearest")
    maps: Maps = np.clip(large, 0.0, 1.0)
    return maps


def rank_pixels(maps: Maps, heads: NDArray[np.bool_]) -> FloatArray:
    """Say when each pixel is covered: 0 the first, towards 1 the last, above 1 outside the head.

    Of pixels with equal attribution those further up, then further left, go first.
    """
    ranks = np.full(maps.shape, 2.0)
    for rank, attribution, head in zip(ranks, maps, heads, strict=True):
        order = np.argsort(-attribution[head], kind="stable")
        within = np.empty(len(order))
        within[order] = np.arange(len(order)) / len(order)
        rank[head] = within
    return ranks


def follow_deletion(
    network: "nn.Module", images: "Tensor", maps: Maps, heads: NDArray[np.bool_], target: int
) -> FloatArray:
    """Return the probability of a class while the head is covered, (n, 1 + NUM_STEPS).

    Args:
        network: In eval mode.
        images: float32 (n, 3, height, width) in [-1, 1].
        maps: What is covered first, (n, height, width).
        heads: Where anything is covered, (n, height, width).
        target: The class.
    """
    import torch

    cover, ranks = blur(images), torch.from_numpy(rank_pixels(maps, heads)).to(images.device)
    curves = []
    with torch.inference_mode():
        for step in range(NUM_STEPS + 1):
            is_covered = (ranks < step / NUM_STEPS)[:, None]
            logits = network(torch.where(is_covered, cover, images))
            curves.append(logits.double().softmax(dim=1)[:, target].cpu().numpy())
    return np.stack(curves, axis=1)


def area_under(curves: FloatArray) -> FloatArray:
    """Return the area under deletion curves (n, steps) over [0, 1], (n,)."""
    areas: FloatArray = np.trapezoid(curves, dx=1 / (curves.shape[1] - 1), axis=1)
    return areas
