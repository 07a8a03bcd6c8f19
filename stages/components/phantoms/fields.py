"""Smooth random fields on regular grids, made by separable B-spline interpolation."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@functools.cache
def spline_matrix(length: int, num_controls: int) -> Array:
    """Return cubic B-spline weights, float32 (length, num_controls), with rows that sum to 1."""
    position = np.linspace(0.0, num_controls - 3 - 1e-6, length)
    first = position.astype(int)
    t = position - first
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    )
    matrix = np.zeros((length, num_controls), np.float32)
    for offset in range(4):
        matrix[np.arange(length), first + offset] = weights[:, offset] / 6
    return matrix


@functools.cache
def linear_matrix(length: int, stride: int) -> Array:
    """Return weights that interpolate samples taken every `stride` voxels, (length, coarse)."""
    coarse = -(-length // stride) + 1
    position = np.arange(length) / stride
    distance = np.abs(position[:, None] - np.arange(coarse))
    weights: Array = np.maximum(0, 1 - distance).astype(np.float32)
    return weights


def apply_separable(coarse: Array, matrices: tuple[Array, Array, Array]) -> Array:
    """Multiply each axis of `coarse` (a, b, c) by its matrix, giving (i, j, k)."""
    out = np.tensordot(matrices[0], coarse, axes=(1, 0))  # (i, b, c)
    out = np.matmul(matrices[1], out)  # (i, j, c)
    result: Array = np.matmul(out, matrices[2].T)
    return result


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], scale_vox: float) -> Array:
    """Draw a smooth field, float32 `shape`, mean near 0, unit variance, knots `scale_vox` apart."""
    counts = [int(np.ceil(n / scale_vox)) + 3 for n in shape]
    matrices = tuple(spline_matrix(n, c) for n, c in zip(shape, counts, strict=True))
    gain = np.prod([np.sqrt(np.mean(np.sum(m * m, axis=1))) for m in matrices])
    controls = rng.standard_normal(counts, dtype=np.float32) / np.float32(gain)
    return apply_separable(controls, (matrices[0], matrices[1], matrices[2]))


def soft_step(distance: NDArray[np.floating], width_mm: float) -> Array:
    """Return 1 inside (negative distance), 0 outside, linear over `width_mm` about zero."""
    opacity: Array = np.clip(0.5 - distance / np.float32(width_mm), 0, 1)
    return opacity
