"""Copies of training slices among synthetic ones: the search, and planted copies as control."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.components import diagnostics
from stages.components.features.nearest import Nearest, Threshold
from stages.components.imaging.pixels import RgbImage
from stages.components.metric import MetricSpec

PLANTED = ("exact", "shifted", "mirrored", "recoloured")
NUM_PLANTED = 48  # training slices that are planted in each way
LEAST_RECALL = 0.95


COPIED = MetricSpec(
    key="copied_share",
    higher_is_better=False,
    least_n=2,
    citation="share of images nearer to a training slice than 99 % of held-out slices are",
    names={"copied_share": "Called copies"},
    is_share=True,
)
RECALL = MetricSpec(
    key="copy_recall",
    higher_is_better=True,
    least_n=2,
    citation="share of planted copies (exact, shifted, mirrored, recoloured) that are found",
    is_share=True,
)


def iter_planted(
    images: Iterator[RgbImage], kind: str, rng: np.random.Generator
) -> Iterator[RgbImage]:
    """Yield altered copies of images: what a generator that copies might give.

    Shifts go up to 5 % of the side, filled with 0; recolouring changes gamma (0.7 to 1.4), gain
    (0.85 to 1.15) and the balance of channels (by 10 %).
    """
    for image in images:
        if kind == "shifted":
            reach = max(1, round(0.05 * image.shape[0]))
            down, across = rng.integers(1, reach + 1, 2) * rng.choice([-1, 1], 2)
            yield _shift(image, int(down), int(across))
        elif kind == "mirrored":
            yield np.ascontiguousarray(image[:, ::-1])
        elif kind == "recoloured":
            gamma, gain = np.exp(rng.uniform(-0.35, 0.35)), rng.uniform(0.85, 1.15)
            tint = rng.uniform(0.9, 1.1, 3)
            made = 255 * gain * tint * (image / 255) ** gamma
            yield np.asarray(np.clip(np.rint(made), 0, 255), dtype=np.uint8)
        else:
            yield image


def _shift(image: RgbImage, down: int, across: int) -> RgbImage:
    moved = np.roll(image, (down, across), axis=(0, 1))
    moved[slice(0, down) if down > 0 else slice(down, None)] = 0
    moved[:, slice(0, across) if across > 0 else slice(across, None)] = 0
    return moved


def cross_fit(held_out: Nearest, groups: Sequence[str]) -> NDArray[np.bool_]:
    """Call held-out slices by the threshold of the other half of their groups, (n,)."""
    order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    half = np.array([order[group] % 2 for group in groups])
    called = np.zeros(len(groups), dtype=bool)
    for side in (0, 1):
        own, other = np.flatnonzero(half == side), np.flatnonzero(half != side)
        if len(other):
            called[own] = Threshold.of(held_out.take(other)).is_copy(held_out.take(own))
    return called


def share(
    called: NDArray[np.bool_],
    *,
    floor: NDArray[np.bool_] | None,
    num_train: int,
    confidence: float,
) -> dict[str, Any]:
    """Return a share of copies with Wilson's interval and Fisher's p against the floor's share.

    Fisher's exact test is the permutation test of two shares.
    """
    from scipy.stats import fisher_exact

    count, hits = len(called), int(called.sum())
    low, high = diagnostics.wilson(hits, count, confidence=confidence)
    p = None
    if floor is not None and len(floor):
        table = [[hits, count - hits], [int(floor.sum()), int((~floor).sum())]]
        p = float(fisher_exact(table, alternative="greater").pvalue)
    return {
        "value": hits / count,
        "low": low,
        "high": high,
        "n_real": num_train,
        "n_synthetic": count,
        "p": p,
    }


def is_found(
    threshold: Threshold, found: Nearest, sources: Sequence[int], groups: Sequence[str]
) -> NDArray[np.bool_]:
    """Tell which planted copies are called copies *and* traced to a slice of their own group."""
    traced = [
        groups[source] in (groups[a], groups[b])
        for source, a, b in zip(sources, found.by_features, found.by_pixels, strict=True)
    ]
    hits: NDArray[np.bool_] = threshold.is_copy(found) & np.asarray(traced, dtype=bool)
    return hits


def closest(
    threshold: Threshold, found: Nearest, names: Sequence[str], train: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """List the images nearest to a training slice, each with that slice, as JSON objects."""
    excess = threshold.excess(found)
    rows = []
    for row in np.argsort(-excess, kind="stable")[:count]:
        by_pixels = found.correlation[row] / threshold.correlation >= threshold.distance / max(
            found.distance[row], 1e-12
        )
        nearest = found.by_pixels[row] if by_pixels else found.by_features[row]
        rows.append(
            {
                "image": names[row],
                "train": train[nearest],
                "by": "pixels" if by_pixels else "features",
                "correlation": float(found.correlation[row]),
                "distance": float(found.distance[row]),
                "copy": bool(excess[row] > 1),
            }
        )
    return rows
