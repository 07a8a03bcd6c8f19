"""Nearest training slices of images, in features and in pixels: does a generator copy?

An image is called a copy where it is nearer to some training slice than all but `TAIL` of held-out
real slices are, in feature space (Euclidean distance) or in pixels (correlation of brightness at
64 px where the two overlap, over small shifts in steps of half a pixel and left-right mirroring;
brightness and contrast drop out of it). So about
`2 TAIL` of innocent images are called copies too: that share is measured, on the half of the
held-out groups that did not set the threshold. Planted copies (exact, shifted, mirrored,
recoloured) say what share of real copies would be found.

What it cannot see: a copy of a part, a turned copy, a copy in a style so far from real slices that
it is near to none of them.

Source: Dar et al., "Unconditional Latent Diffusion Models Memorize Patient Imaging Data", Nature
Biomedical Engineering 2025, for nearest neighbours against held-out slices; Carlini et al.,
"Extracting Training Data from Diffusion Models", USENIX Security 2023; Lewis, "Fast Normalized
Cross-Correlation", Vision Interface 1995, for correlation over shifts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.components.statistics.bootstrap import FloatArray

SIZE_PX = 64  # of the brightness that is correlated
MAX_SHIFT_PX = 6  # of 64, either way
PADDED_PX = 72  # of the transforms: at least 64 + MAX_SHIFT_PX, so that no shift wraps around
NUM_CANDIDATES = 4  # training slices by each of two cheap descriptions, tried at every shift
TAIL = 0.01
LEAST_HELD_OUT = 50


@dataclass(frozen=True)
class Probe:
    """Images as they are compared: features (n, d) and brightness uint8 (n, 64 * 64)."""

    features: FloatArray
    luma: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: Sequence[int] | NDArray[Any]) -> "Probe":
        """Keep some images."""
        return Probe(self.features[rows], self.luma[rows])


@dataclass(frozen=True)
class Nearest:
    """The nearest training slice of each image (n,), by features and by pixels."""

    distance: FloatArray
    by_features: NDArray[np.intp]
    correlation: FloatArray
    by_pixels: NDArray[np.intp]

    def take(self, rows: Sequence[int] | NDArray[Any]) -> "Nearest":
        """Keep some images."""
        return Nearest(
            self.distance[rows],
            self.by_features[rows],
            self.correlation[rows],
            self.by_pixels[rows],
        )


@dataclass(frozen=True)
class Threshold:
    """From where on an image is called a copy."""

    distance: float
    correlation: float

    @classmethod
    def of(cls, held_out: Nearest) -> "Threshold":
        """Take the tails of held-out real slices."""
        return cls(
            float(np.quantile(held_out.distance, TAIL)),
            float(np.quantile(held_out.correlation, 1 - TAIL)),
        )

    def is_copy(self, neighbours: Nearest) -> NDArray[np.bool_]:
        """Tell which images are copies, (n,)."""
        near: NDArray[np.bool_] = neighbours.distance < self.distance
        return near | (neighbours.correlation > self.correlation)

    def excess(self, neighbours: Nearest) -> FloatArray:
        """Rank images by how far they are beyond the threshold; above 1: a copy."""
        near = self.distance / np.maximum(neighbours.distance, 1e-12)
        return np.maximum(near, neighbours.correlation / self.correlation)


class Gallery:
    """The training slices, ready to be searched."""

    def __init__(self, train: Probe) -> None:
        self.train = train
        self.squares = (train.features**2).sum(axis=1)
        self.small = _small(train.luma)
        self.spectra = _spectra(train.luma)

    def nearest(self, images: Probe, *, leave_out: Sequence[int] | None = None) -> Nearest:
        """Find each image's nearest training slice; one image at a time, so order changes nothing.

        `leave_out`: for each image, the training row that is the image itself.
        """
        neighbours = [
            self._nearest(
                images.features[row],
                images.luma[row : row + 1],
                None if leave_out is None else leave_out[row],
            )
            for row in range(len(images))
        ]
        distance, by_features, correlation, by_pixels = (
            zip(*neighbours, strict=True) if neighbours else ((), (), (), ())
        )
        return Nearest(
            np.asarray(distance, float),
            np.asarray(by_features, np.intp),
            np.asarray(correlation, float),
            np.asarray(by_pixels, np.intp),
        )

    def _nearest(
        self, features: FloatArray, luma: NDArray[np.uint8], itself: int | None
    ) -> tuple[float, int, float, int]:
        squared = self.squares - 2 * (self.train.features @ features) + features @ features
        mirrored = luma.reshape(-1, SIZE_PX, SIZE_PX)[:, :, ::-1].reshape(1, -1)
        both = np.concatenate([luma, mirrored])
        alike = (self.small @ _small(both).T).max(axis=1)
        shaped = (self.spectra @ _spectra(both).T).max(axis=1)
        if itself is not None:
            squared[itself], alike[itself], shaped[itself] = np.inf, -np.inf, -np.inf
        by_features = int(squared.argmin())
        candidates = np.unique(
            np.concatenate(
                [np.argsort(-s, kind="stable")[:NUM_CANDIDATES] for s in (alike, shaped)]
            )
        )
        if itself is not None:
            candidates = candidates[candidates != itself]
        shown = _unit_images(self.train.luma[candidates])
        correlations = _correlate(_unit_images(both), shown)
        best = int(correlations.argmax())
        difference = self.train.features[by_features] - features
        return (
            float(np.linalg.norm(difference)),
            by_features,
            float(correlations[best]),
            int(candidates[best]),
        )


def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Take off the mean and scale to length 1; a constant row becomes 0."""
    centred = rows.astype(np.float32) - rows.mean(axis=1, keepdims=True, dtype=np.float32)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(length, 1e-6), dtype=np.float32)


def _unit_images(luma: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _unit(luma).reshape(-1, SIZE_PX, SIZE_PX)


def _small(luma: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe images (n, 256) by 16 x 16 block means: cheap, and deaf to shifts of a pixel."""
    blocks = luma.reshape(-1, 16, SIZE_PX // 16, 16, SIZE_PX // 16).mean(axis=(2, 4))
    return _unit(blocks.reshape(len(luma), -1))


def _spectra(luma: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe images by the size of their low frequencies, which no shift changes."""
    sizes = np.abs(_waves(_unit_images(luma)))
    low = np.concatenate([sizes[:, :12, :12], sizes[:, -11:, :12]], axis=1)
    return _unit(np.log1p(10 * low).reshape(len(luma), -1))


def _waves(images: NDArray[np.float32]) -> NDArray[np.complex64]:
    from scipy import fft

    return np.asarray(fft.rfft2(images), dtype=np.complex64)


def _correlate(images: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the best correlation of any of `images` (n, 64, 64) with each of `others`, (m,).

    Pearson's, over the pixels that overlap at a shift. Half a pixel matters: at 64 px a slice of
    128 px that was moved by one pixel correlates at 0.9 only with what it was.
    """
    from scipy import fft

    shape = (PADDED_PX, PADDED_PX)
    products = fft.rfft2(images, s=shape)[:, None] * np.conj(fft.rfft2(others, s=shape))[None]
    half = PADDED_PX // 2
    fine = np.zeros((*products.shape[:2], 2 * PADDED_PX, PADDED_PX + 1), products.dtype)
    products[:, :, half] /= 2  # the highest frequencies count as both signs of themselves
    products[:, :, :, half] /= 2
    fine[:, :, : half + 1, : half + 1] = products[:, :, : half + 1]
    fine[:, :, -half:, : half + 1] = products[:, :, half:]
    lags = np.arange(-2 * MAX_SHIFT_PX, 2 * MAX_SHIFT_PX + 1)
    correlated = fft.irfft2(fine, s=(2 * PADDED_PX, 2 * PADDED_PX))
    together = 4 * correlated[:, :, lags[:, None], lags[None]]

    shifts = np.arange(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1)
    count = _overlaps(np.ones_like(images[:1]), shifts)
    sums, other_sums = _overlaps(images, shifts)[:, None], _overlaps(others, -shifts)[None]
    spread = _overlaps(images**2, shifts)[:, None] - sums**2 / count
    other_spread = _overlaps(others**2, -shifts)[None] - other_sums**2 / count
    shared = together - sums * other_sums / count
    # A constant image, whose spread is rounding, correlates with nothing.
    correlations = shared / np.sqrt(np.maximum(spread * other_spread, 1e-6))
    best: NDArray[np.float64] = correlations.max(axis=(0, 2, 3))
    return best


def _overlaps(images: NDArray[np.float32], shifts: NDArray[np.intp]) -> NDArray[np.float64]:
    """Sum (n, 64, 64) over what overlaps at each shift and halfway between two, (n, 25, 25)."""
    totals = np.zeros((len(images), SIZE_PX + 1, SIZE_PX + 1))
    totals[:, 1:, 1:] = images.cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    low, high = np.maximum(0, shifts), SIZE_PX + np.minimum(0, shifts)
    rows = totals[:, high] - totals[:, low]
    sums = rows[:, :, high] - rows[:, :, low]
    for axis in (1, 2):
        sums = np.moveaxis(sums, axis, -1)
        between = (sums[..., 1:] + sums[..., :-1]) / 2
        both = np.zeros((*sums.shape[:-1], 2 * sums.shape[-1] - 1))
        both[..., ::2], both[..., 1::2] = sums, between
        sums = np.moveaxis(both, -1, axis)
    return sums
