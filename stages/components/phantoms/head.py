"""The head around the brain, from the skin inwards: scalp, soft tissue, skull, dura, fluid."""

from __future__ import annotations

import functools

import numpy as np

from stages.components.phantoms.anatomy import (
    BRAIN_BOX_MM,
    HULL_ORIGIN_MM,
    HULL_SPACING_MM,
    Warp,
    load_template,
    upsampled,
)
from stages.components.phantoms.face import build_ears, build_face, build_skull_base, build_spine
from stages.components.phantoms.fields import Array, smooth_noise, soft_step
from stages.components.phantoms.shapes import (
    EDGE_MM,
    Layer,
    Triple,
    ellipsoid,
    shell,
    smooth_union,
)

# Centre and radii in MNI mm, and the fillet in mm that joins each to those before it.
BODY: tuple[tuple[Triple, Triple, float], ...] = (
    ((0, 40, -70), (61, 55, 58), 14),  # mid face
    ((0, 6, -62), (73, 50, 60), 14),  # temples and cheeks
    ((0, 30, -100), (57, 50, 40), 12),  # jaw
    ((0, 70, -124), (20, 22, 14), 12),  # chin
    ((30, 54, -38), (24, 26, 24), 12),  # orbits
    ((-30, 54, -38), (24, 26, 24), 12),
    ((0, 88, -52), (9, 13, 26), 8),  # bridge of the nose
    ((0, 93, -72), (15, 17, 13), 8),  # tip of the nose
    ((0, 86, -100), (22, 10, 14), 8),  # lips
    ((0, -34, -128), (60, 58, 78), 16),  # neck
    ((0, -20, -190), (66, 60, 90), 16),  # neck below the volume
)


@functools.cache
def load_body() -> Array:
    """Build the mean body surface once: signed distance in mm on the template's 2 mm grid."""
    hull = load_template().hull
    axes = (
        HULL_ORIGIN_MM[a] + HULL_SPACING_MM * np.arange(n, dtype=np.float32)
        for a, n in enumerate(hull.shape)
    )
    coords = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    body = hull - np.float32(13.0)
    for centre, radii, reach in BODY:
        body = smooth_union(body, ellipsoid(coords, centre, radii), reach)
    return body.astype(np.float32)


def build_head(rng: np.random.Generator, warp: Warp, hull_mm: Array) -> list[Layer]:
    """Return the layers of everything but brain, from the outside in.

    Args:
        rng: the anatomy stream.
        warp: the subject's warp, without mass effect.
        hull_mm: distance to the brain's hull on the whole grid, mm, negative inside.
    """
    shape, step = warp.grid.shape, warp.grid.spacing_mm
    everywhere = warp.grid.box(np.full(3, -1e3), np.full(3, 1e3))
    coarse = smooth_noise(rng, shape, 30 / step)
    fine = smooth_noise(rng, shape, max(4.5 / step, 1.05))
    body = upsampled(load_body(), warp)
    body -= np.float32(rng.normal(0, 1.2)) + np.float32(0.4) * coarse
    inside = soft_step(body, EDGE_MM)
    layers = [
        Layer("muscle", everywhere, inside),
        *build_fat(rng, warp, body, coarse),
        *build_face(rng, warp, fine),
        Layer("air", everywhere, 1 - inside),
        *build_ears(rng, warp, fine),
        *build_vault(rng, warp, hull_mm, body, coarse),
        *build_skull_base(rng, warp, fine),
    ]
    csf_mm = np.float32(rng.uniform(0.4, 2.2)) + np.float32(0.4) * fine
    box = warp.grid.box(BRAIN_BOX_MM[0] - 14, BRAIN_BOX_MM[1] + 14)
    near, gap = hull_mm[box], csf_mm[box]
    layers += [
        Layer("dura", box, shell(near, gap - 1.0, gap + 0.3) * np.float32(0.7)),
        Layer("csf", box, soft_step(near - gap + 0.5, EDGE_MM)),
    ]
    return layers + build_spine(rng, warp)


def build_fat(rng: np.random.Generator, warp: Warp, body: Array, coarse: Array) -> list[Layer]:
    """Return fat planes between the muscles, subcutaneous fat and skin."""
    shape, step = warp.grid.shape, warp.grid.spacing_mm
    box = warp.grid.box(np.array([-1e3, -1e3, -1e3]), np.array([1e3, 1e3, 10.0]))
    low = (shape[0], shape[1], box[2].stop)
    # For a field of unit variance with knots h apart, |field| * h / 2 is about the distance in mm
    # to its zero set (root mean square gradient of a cubic B-spline field in 3-D: 2.04 / h).
    planes = soft_step(np.abs(smooth_noise(rng, low, 17 / step)) * 8.5 - rng.uniform(0.6, 1.6), 1.5)
    sheets = soft_step(np.abs(smooth_noise(rng, low, 8 / step)) * 4.0 - rng.uniform(0.1, 0.7), 1.5)
    lumps = np.clip(smooth_noise(rng, low, 12 / step) - np.float32(rng.uniform(0.6, 1.2)), 0, 0.7)
    streaks = np.maximum(np.maximum(planes, sheets * np.float32(0.6)), lumps)
    below = np.clip((-warp.coords[2] - np.float32(20)) / 30, 0, 1)
    fat_mm = np.float32(rng.uniform(2.0, 5.5)) + np.float32(0.7) * coarse
    fat_mm += below * np.float32(rng.uniform(0, 4)) + np.float32(1.8)
    everywhere = warp.grid.box(np.full(3, -1e3), np.full(3, 1e3))
    return [
        Layer("fat", box, streaks * soft_step(body[box] + 3, 2)),
        Layer("fat", everywhere, shell(body, -fat_mm, -EDGE_MM)),
        Layer("skin", everywhere, shell(body, -2.0, 0.0)),
    ]


def build_vault(
    rng: np.random.Generator, warp: Warp, hull_mm: Array, body: Array, coarse: Array
) -> list[Layer]:
    """Return the skull: dark tables of cortical bone with brighter marrow between them."""
    box = warp.grid.box(BRAIN_BOX_MM[0] - 14, BRAIN_BOX_MM[1] + 14)
    near, cover = hull_mm[box], soft_step(body[box] + 2.5, EDGE_MM)
    bone_mm = np.float32(rng.uniform(5.5, 9.0)) + np.float32(0.7) * coarse[box]
    patches = smooth_noise(
        rng, (near.shape[0], near.shape[1], near.shape[2]), 11 / warp.grid.spacing_mm
    )
    half = (bone_mm - 1) * np.float32(rng.uniform(0.12, 0.30)) * (1 + np.float32(0.6) * patches)
    centre = np.float32(0.5) + bone_mm / 2
    return [
        Layer("bone", box, shell(near, 0.3, bone_mm) * cover),
        Layer("marrow", box, soft_step(np.abs(near - centre) - half, EDGE_MM) * cover),
    ]
