"""What the scanner adds: bias field, resolution, ghosting, gamma and Rician noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.components.phantoms.anatomy import ORIGIN_MM, Grid
from stages.components.phantoms.fields import Array, smooth_noise


@dataclass(frozen=True)
class Scanner:
    """One subject's imaging faults; kernels are the side taps of a three-tap filter per axis."""

    bias: Array
    taps: tuple[float, float, float]
    noise: float
    ghost: tuple[int, int, float] | None
    is_stripped: bool


def sample_scanner(rng: np.random.Generator, grid: Grid) -> Scanner:
    """Draw the faults of one acquisition, independent of anatomy and class."""
    shape = grid.shape
    bias = np.float32(rng.uniform(0.02, 0.14)) * smooth_noise(rng, shape, max(shape) / 2.2)
    bias += np.float32(rng.uniform(-0.05, 0.3)) * radial_falloff(grid)
    np.exp(bias, out=bias)
    # The head coil ends at the neck, and the signal with it.
    z_mm = ORIGIN_MM[2] + np.arange(shape[2], dtype=np.float32) * np.float32(grid.spacing_mm)
    bias *= 1 / (1 + np.exp(-(z_mm - rng.uniform(-175, -95)) / rng.uniform(6, 16)))
    level = rng.uniform(-0.12, 0.18)
    taps = np.clip(level + rng.uniform(-0.03, 0.03, 3), -0.13, 0.24)
    ghost = None
    if rng.random() < 0.12:
        axis = int(rng.integers(0, 2))
        ghost = (axis, int(rng.uniform(12, 60) / grid.spacing_mm), float(rng.uniform(0.01, 0.05)))
    return Scanner(
        bias=bias.astype(np.float32, copy=False),
        taps=(float(taps[0]), float(taps[1]), float(taps[2])),
        noise=float(np.exp(rng.uniform(np.log(0.004), np.log(0.045)))),
        ghost=ghost,
        is_stripped=bool(rng.random() < 0.08),
    )


def radial_falloff(grid: Grid) -> Array:
    """Return the squared distance from the middle of the head, 1 at about the scalp, less 0.5."""
    squares = []
    for axis, (centre, reach) in enumerate(((0.0, 80.0), (-15.0, 100.0), (0.0, 100.0))):
        mm = ORIGIN_MM[axis] + np.arange(grid.shape[axis], dtype=np.float32) * grid.spacing_mm
        squares.append((((mm - centre) / reach) ** 2).astype(np.float32))
    total: Array = squares[0][:, None, None] + squares[1][:, None] + (squares[2] - np.float32(0.5))
    return np.minimum(total, np.float32(1.0), out=total)


def filter_axes(volume: Array, taps: tuple[float, float, float]) -> Array:
    """Blur (positive taps) or sharpen (negative taps) along each axis with three taps."""
    out = volume
    for axis, tap in enumerate(taps):
        result = out * np.float32(1 - 2 * tap)
        moved, side = np.moveaxis(result, axis, 0), np.moveaxis(out, axis, 0) * np.float32(tap)
        moved[1:] += side[:-1]
        moved[:-1] += side[1:]
        out = result
    return out


def acquire(volume: Array, scanner: Scanner, rng: np.random.Generator, gamma: float) -> Array:
    """Apply the faults and Rician noise; float32 in [0, 1]."""
    image = filter_axes(volume, scanner.taps)
    image *= scanner.bias
    if scanner.ghost is not None:
        axis, offset, weight = scanner.ghost
        image = image + np.float32(weight) * np.roll(image, offset, axis)
    np.clip(image, 0, None, out=image)
    if abs(gamma - 1) > 0.01:
        image **= np.float32(gamma)
    sigma = np.float32(scanner.noise)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= sigma
    image += noise
    image *= image
    # The imaginary part reuses the draw, mirrored: half the time, and no visible correlation.
    noise *= noise
    image += noise[::-1, ::-1]
    np.sqrt(image, out=image)
    np.minimum(image, 1, out=image)
    return image
