"""Layers of tissue and the shapes that make them: ellipsoids, rounded cylinders, shells.

Structures are painted in order as layers: a later layer covers an earlier one by its opacity.
Shapes are given in MNI millimetres and evaluated on the warped coordinates, so they deform with
the subject and keep antialiased edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.components.phantoms.anatomy import Box, Warp
from stages.components.phantoms.fields import Array, soft_step

Triple = tuple[float, float, float]
EDGE_MM = 1.5


@dataclass(frozen=True)
class Layer:
    """Paint `tissue` over `box` with opacity `alpha`, float32 in [0, 1]."""

    tissue: str
    box: Box
    alpha: Array


def ellipsoid(coords: Array, centre: Triple, radii: Triple) -> Array:
    """Return the approximate signed distance in mm to an ellipsoid, negative inside."""
    near = np.float32(0)
    far = np.float32(1e-6)
    for axis in range(3):
        scaled = (coords[axis] - np.float32(centre[axis])) / np.float32(radii[axis])
        near = near + scaled**2
        far = far + (scaled / np.float32(radii[axis])) ** 2
    norm = np.sqrt(near)
    distance: Array = norm * (norm - np.float32(1)) / np.sqrt(far)
    return distance


def capsule(coords: Array, start: Triple, end: Triple, radius: float) -> Array:
    """Return the signed distance in mm to a rounded cylinder, negative inside."""
    a = np.asarray(start, np.float32)
    along = np.asarray(end, np.float32) - a
    offset = coords - a.reshape(3, *([1] * (coords.ndim - 1)))
    t = np.clip(np.tensordot(along / np.dot(along, along), offset, axes=(0, 0)), 0, 1)
    gap = offset - along.reshape(3, *([1] * (coords.ndim - 1))) * t
    distance: Array = np.sqrt(np.sum(gap * gap, axis=0)) - np.float32(radius)
    return distance


def smooth_union(a: Array, b: Array, reach_mm: float) -> Array:
    """Join two signed distances with a fillet of about `reach_mm`."""
    blend = np.maximum(reach_mm - np.abs(a - b), 0) / reach_mm
    joined: Array = np.minimum(a, b) - blend * blend * np.float32(reach_mm / 4)
    return joined


def shell(distance: Array, inner_mm: Array | float, outer_mm: Array | float) -> Array:
    """Return the opacity of a layer between two distances, with antialiased edges."""
    opacity: Array = soft_step(distance - outer_mm, EDGE_MM) * soft_step(
        inner_mm - distance, EDGE_MM
    )
    return opacity


class Painter:
    """Collect layers of simple shapes, each evaluated only in a box around itself."""

    def __init__(self, warp: Warp, rng: np.random.Generator) -> None:
        self.warp = warp
        self.rng = rng
        self.layers: list[Layer] = []

    def ellipsoid(
        self,
        tissue: str,
        centre: Triple,
        radii: Triple,
        *,
        opacity: float = 1.0,
        rough: tuple[Array, float] | None = None,
        wall: tuple[str, float] | None = None,
    ) -> None:
        """Paint an ellipsoid.

        Args:
            tissue: name in the tissue table.
            centre: MNI mm.
            radii: mm.
            opacity: of the inside.
            rough: a field on the whole grid, and by how many mm it displaces the surface.
            wall: tissue and thickness in mm of a shell laid around the ellipsoid.
        """
        box = self.warp.box_about(np.asarray(centre), max(radii) + (wall[1] if wall else 0))
        coords = self.warp.coords[(slice(None), *box)]
        if coords.size == 0:
            return
        distance = ellipsoid(coords, centre, radii)
        if rough is not None:
            distance = distance + np.float32(rough[1]) * rough[0][box]
        if wall is not None:
            self.layers.append(Layer(wall[0], box, soft_step(distance - wall[1], EDGE_MM)))
        self.layers.append(Layer(tissue, box, soft_step(distance, EDGE_MM) * np.float32(opacity)))

    def capsule(
        self, tissue: str, start: Triple, end: Triple, radius: float, *, opacity: float = 1.0
    ) -> None:
        """Paint a rounded cylinder from `start` to `end` (MNI mm) of `radius` mm."""
        middle = (np.asarray(start) + np.asarray(end)) / 2
        reach = float(np.linalg.norm(np.asarray(start) - np.asarray(end))) / 2 + radius
        box = self.warp.box_about(middle, reach)
        coords = self.warp.coords[(slice(None), *box)]
        if coords.size == 0:
            return
        alpha = soft_step(capsule(coords, start, end, radius), EDGE_MM) * np.float32(opacity)
        self.layers.append(Layer(tissue, box, alpha))

    def vary(self, centre: Triple, spread_mm: float) -> Triple:
        """Return a centre moved at random in y and z, so that pairs stay symmetric."""
        y, z = self.rng.normal(0, spread_mm, 2)
        return (centre[0], centre[1] + float(y), centre[2] + float(z))
