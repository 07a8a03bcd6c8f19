"""Brain anatomy: tissue maps of the ICBM152 template, carried into each subject by one warp.

Maps come from the nilearn wheel (ICBM 152 nonlinear 2009a, skull stripped). World coordinates are
RAS+ millimetres of MNI space throughout, so x < 0 is the subject's left.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from nilearn import datasets
from numpy.typing import NDArray
from scipy import ndimage

from stages.components.phantoms.fields import (
    Array,
    apply_separable,
    linear_matrix,
    smooth_noise,
    soft_step,
)

ORIGIN_MM = np.array([-93.0, -132.0, -138.0], np.float32)
EXTENT_MM = np.array([186.0, 252.0, 237.0], np.float32)
BRAIN_BOX_MM = np.array([[-82.0, -118.0, -80.0], [82.0, 86.0, 92.0]])
TEMPLATE_ORIGIN_MM = np.array([-98.0, -134.0, -72.0], np.float32)
HULL_ORIGIN_MM = np.array([-110.0, -150.0, -160.0], np.float32)
HULL_SPACING_MM = 2.0


@dataclass(frozen=True)
class Template:
    """Maps in MNI space: `gm` and `wm` at 1 mm in [0, 1], `hull` the distance in mm at 2 mm."""

    gm: Array
    wm: Array
    hull: Array


@dataclass(frozen=True)
class Grid:
    """The subject's voxel grid: shape (i, j, k) and spacing in mm."""

    shape: tuple[int, int, int]
    spacing_mm: float

    def affine(self) -> NDArray[np.float64]:
        """Return the RAS+ voxel-to-millimetre matrix (4, 4)."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = ORIGIN_MM
        return affine

    def box(self, low_mm: NDArray[np.floating], high_mm: NDArray[np.floating]) -> Box:
        """Return the slices that cover a box of world coordinates, cut to the grid."""
        low = np.floor((low_mm - ORIGIN_MM) / self.spacing_mm).astype(int)
        high = np.ceil((high_mm - ORIGIN_MM) / self.spacing_mm).astype(int) + 1
        return (
            slice(max(low[0], 0), max(min(high[0], self.shape[0]), 0)),
            slice(max(low[1], 0), max(min(high[1], self.shape[1]), 0)),
            slice(max(low[2], 0), max(min(high[2], self.shape[2]), 0)),
        )


Box = tuple[slice, slice, slice]


def make_grid(spacing_mm: float) -> Grid:
    """Return the grid that covers head and upper neck at `spacing_mm`."""
    n = np.ceil(EXTENT_MM / spacing_mm).astype(int)
    return Grid((int(n[0]), int(n[1]), int(n[2])), spacing_mm)


@functools.cache
def load_template() -> Template:
    """Load the tissue maps once per process and measure the distance to the brain's hull."""
    image, gm, wm = (
        np.asarray(load(resolution=1).dataobj, dtype=np.float32)
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    )
    hull = np.zeros((110, 140, 140), bool)
    coarse = image[::2, ::2, ::2] > 0.05
    at = ((TEMPLATE_ORIGIN_MM - HULL_ORIGIN_MM) / HULL_SPACING_MM).astype(int)
    hull[tuple(slice(a, a + n) for a, n in zip(at, coarse.shape, strict=True))] = coarse
    near = ndimage.distance_transform_edt(~hull) < 3
    closed = ndimage.distance_transform_edt(near) > 3
    closed = ndimage.binary_fill_holes(closed | hull)
    outside = ndimage.distance_transform_edt(~closed) * HULL_SPACING_MM
    inside = ndimage.distance_transform_edt(closed) * HULL_SPACING_MM
    signed = ndimage.gaussian_filter((outside - inside).astype(np.float32), 0.8)
    return Template(gm / gm.max(), wm / wm.max(), signed)


@dataclass(frozen=True)
class Warp:
    """Where each voxel comes from: `coords` (3, i, j, k), MNI mm; `inverse` undoes the affine."""

    grid: Grid
    coords: Array
    inverse: NDArray[np.float64]
    shift: NDArray[np.float64]

    def to_subject(self, point_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map an MNI point (3,) to subject mm; two corrections undo the elastic part."""
        wanted = np.asarray(point_mm, np.float64)
        moved: NDArray[np.float64] = self.inverse @ (wanted - self.shift)
        for _ in range(2):
            index = np.rint((moved - ORIGIN_MM) / self.grid.spacing_mm).astype(int)
            i, j, k = np.clip(index, 0, np.array(self.grid.shape) - 1)
            at_mm = ORIGIN_MM + np.array([i, j, k]) * self.grid.spacing_mm
            moved = at_mm + self.inverse @ (wanted - self.coords[:, i, j, k])
        return moved

    def box_about(self, centre_mm: NDArray[np.floating], radius_mm: float) -> Box:
        """Return a box of voxels that holds the ball about an MNI point after the warp."""
        centre = self.to_subject(centre_mm)
        reach = radius_mm * 1.15 + 4
        return self.grid.box(centre - reach, centre + reach)


def sample_warp(rng: np.random.Generator, grid: Grid) -> Warp:
    """Draw an affine (scale, shear, rotation) plus elastic warp; ventricle size is part of it."""
    scale = rng.normal(1.0, 0.03) * np.array([rng.normal(1, 0.03) for _ in range(3)])
    angles = rng.normal(0, [0.10, 0.05, 0.05])
    matrix = np.diag(1 / np.clip(scale, 0.88, 1.12)) + rng.normal(0, 0.015, (3, 3))
    for axis, angle in enumerate(angles):
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    shift = rng.normal(0, 3.0, 3)
    axes = [
        ORIGIN_MM[a] + np.arange(n, dtype=np.float32) * np.float32(grid.spacing_mm)
        for a, n in enumerate(grid.shape)
    ]
    m = matrix.astype(np.float32)
    coords = np.empty((3, *grid.shape), np.float32)
    for row in range(3):
        coords[row] = (
            (m[row, 0] * axes[0] + np.float32(shift[row]))[:, None, None]
            + (m[row, 1] * axes[1])[None, :, None]
            + (m[row, 2] * axes[2])[None, None, :]
        )
        for knot_mm, amplitude_mm in ((60.0, 3.5), (32.0, 1.2)):
            amplitude = np.float32(amplitude_mm * rng.uniform(0.5, 1.2))
            coords[row] += amplitude * smooth_noise(rng, grid.shape, knot_mm / grid.spacing_mm)
    squeeze_ventricles(coords, float(np.clip(rng.normal(0.05, 0.22), -0.3, 0.55)))
    inverse = np.linalg.inv(matrix).astype(np.float64)
    return Warp(grid, coords, inverse, shift)


def squeeze_ventricles(coords: Array, growth: float) -> None:
    """Widen (growth > 0) or narrow the lateral ventricles by sampling nearer to their axes."""
    x, y, z = coords
    for side in (-1, 1):
        dx, dz = x - side * 12, z - 14
        pull = growth * np.exp(-((dx / 13) ** 2) - (dz / 14) ** 2 - ((y + 12) / 38) ** 2)
        x -= dx * pull
        z -= dz * pull


@dataclass(frozen=True)
class BrainMaps:
    """Tissue fractions in the brain box; `hull_mm` covers the whole grid (negative inside)."""

    box: Box
    parenchyma: Array
    white: Array
    hull_mm: Array


def sample_volume(volume: Array, coords: Array, origin_mm: Array, spacing_mm: float) -> Array:
    """Interpolate linearly at MNI `coords` (3, ...); outside the volume take its edge."""
    index = (coords - origin_mm.reshape(3, *([1] * (coords.ndim - 1)))) / np.float32(spacing_mm)
    sampled: Array = ndimage.map_coordinates(
        volume, index, order=1, mode="nearest", output=np.float32
    )
    return sampled


def upsampled(volume: Array, warp: Warp) -> Array:
    """Sample a smooth 2 mm volume on every second voxel and interpolate to the full grid."""
    shape = warp.grid.shape
    index = [np.minimum(np.arange(-(-n // 2) + 1) * 2, n - 1) for n in shape]
    coords = warp.coords[:, index[0][:, None, None], index[1][:, None], index[2]]
    coarse = sample_volume(volume, coords, HULL_ORIGIN_MM, HULL_SPACING_MM)
    matrices = tuple(linear_matrix(n, 2) for n in shape)
    return apply_separable(coarse, (matrices[0], matrices[1], matrices[2]))


def sample_brain(rng: np.random.Generator, warp: Warp, pushed: Warp) -> BrainMaps:
    """Carry the tissue maps into the subject, with folds of its own.

    The template is a mean of many brains and its cortex is blurred. Sharpened maps get back an
    individual cortex by fine displacement and by sulci along the zero set of a random field.

    Args:
        rng: the anatomy stream.
        warp: the subject's warp, which fixes the hull.
        pushed: the same with mass effect, which moves the tissue inside.
    """
    template = load_template()
    box = warp.grid.box(BRAIN_BOX_MM[0], BRAIN_BOX_MM[1])
    hull = upsampled(template.hull, warp)
    inside = hull[box] < 1.0
    shape = (inside.shape[0], inside.shape[1], inside.shape[2])
    coords = pushed.coords[(slice(None), *box)][:, inside]  # (3, voxels)
    depth = -hull[box][inside]
    damping = np.clip(depth / 8, 0.15, 1)
    step = warp.grid.spacing_mm
    for knot_mm, amplitude_mm in ((20.0, 1.7), (10.0, 0.8)):
        amplitude = damping * np.float32(amplitude_mm * rng.uniform(0.5, 1.2))
        for row in range(3):
            coords[row] += amplitude * smooth_noise(rng, shape, knot_mm / step)[inside]
    gm = sample_volume(template.gm, coords, TEMPLATE_ORIGIN_MM, 1.0)
    wm = sample_volume(template.wm, coords, TEMPLATE_ORIGIN_MM, 1.0)
    atrophy = float(rng.beta(1.6, 2.4))
    gain = np.float32(rng.uniform(2.0, 4.0))
    total = gm + wm
    tissue = np.clip((total - np.float32(0.40 + 0.3 * atrophy)) * gain + np.float32(0.5), 0, 1)
    tissue *= soft_step(-depth, 2.0)
    share = wm / np.maximum(total, np.float32(0.05))
    white = np.clip((share - np.float32(0.5)) * np.float32(1.7) + np.float32(0.5), 0, 1)
    fold = smooth_noise(rng, shape, rng.uniform(12, 17) / step)[inside]
    fold_cortex(rng, coords, depth, fold, atrophy, tissue, white)
    maps = np.zeros((2, *shape), np.float32)
    maps[0][inside], maps[1][inside] = tissue, white
    return BrainMaps(box, maps[0], maps[1], hull)


def fold_cortex(
    rng: np.random.Generator,
    coords: Array,
    depth: Array,
    fold: Array,
    atrophy: float,
    tissue: Array,
    white: Array,
) -> None:
    """Cut sulci and cerebellar folia into the flat lists `tissue` and `white`, in place."""
    _, y, z = coords
    cerebellum = soft_step(y + 40, 8) * soft_step(z + 18 + 0.25 * (y + 60), 6)
    low = soft_step(z + 30, 10) * soft_step(y + 15, 10)
    cortex = soft_step(depth - np.float32(rng.uniform(9, 17)) - 2 * fold, 6)
    cortex *= (1 - cerebellum) * (1 - low) * np.float32(rng.uniform(0.6, 1))
    gap = np.abs(fold) * np.float32(7.0)
    half_mm = 0.1 + 1.1 * atrophy
    core = cortex * soft_step(half_mm + 4.2 - gap, 1.5) * soft_step(4.0 - depth, 2.0)
    np.maximum(white, core * np.float32(0.95), out=white)
    white *= 1 - cortex * soft_step(gap - half_mm - 2.4, 1.5)
    tissue *= 1 - cortex * soft_step(gap - half_mm, 1.5)
    period_mm, strength = rng.uniform(3.6, 5.5), rng.uniform(0.05, 0.35)
    folia = np.cos(depth * np.float32(2 * np.pi / period_mm) + 2 * fold)
    folia *= cerebellum * soft_step(depth - 18, 6) * np.float32(strength)
    tissue *= 1 - np.maximum(folia, 0)
