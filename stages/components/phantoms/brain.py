"""Layers of the brain: grey and white matter, deep nuclei, falx, vessels and small lesions."""

from __future__ import annotations

import numpy as np

from stages.components.phantoms.anatomy import BrainMaps, Warp
from stages.components.phantoms.fields import smooth_noise, soft_step
from stages.components.phantoms.shapes import Layer, Painter


def build_brain(rng: np.random.Generator, warp: Warp, brain: BrainMaps) -> list[Layer]:
    """Return the brain's layers, painted over cerebrospinal fluid."""
    box = brain.box
    step = warp.grid.spacing_mm
    x, y, z = warp.coords[(slice(None), *box)]
    shape = (x.shape[0], x.shape[1], x.shape[2])
    hull = brain.hull_mm[box]
    layers = [
        Layer("grey", box, brain.parenchyma),
        Layer("white", box, brain.white * brain.parenchyma),
    ]
    paint = Painter(warp, rng)
    for side in (-1, 1):
        paint.ellipsoid("pallidum", (side * 20, -4, -1), (5, 9, 6), opacity=0.7)
        paint.ellipsoid("pallidum", (side * 11, -19, -10), (3, 4, 3), opacity=0.5)
        paint.ellipsoid("choroid", (side * 22, -40, 8), (3, 6, 4), opacity=0.6)
    layers += paint.layers
    vessels = smooth_noise(rng, shape, 6 / step)
    vessels = np.abs(vessels) + np.abs(smooth_noise(rng, shape, 7 / step))
    fluid = 1 - brain.parenchyma
    tubes = soft_step(vessels - np.float32(rng.uniform(0.10, 0.2)), 0.15)
    layers.append(Layer("vessel", box, tubes * fluid * soft_step(hull, 1.5)))
    spots = smooth_noise(rng, shape, 5 / step)
    load = rng.random()
    near = np.exp(-((np.abs(np.abs(x) - 22) / 14) ** 2) - ((z - 22) / 18) ** 2)
    if load < 0.35:
        lesions = np.clip(spots - np.float32(3.2 - 3.0 * load) + 0.6 * near, 0, 1)
        layers.append(Layer("lesion", box, lesions * brain.white * brain.parenchyma))
    falx = soft_step(np.abs(x) - 0.6, 1.2) * soft_step(np.float32(14) - z + 0.004 * y * y, 6)
    layers.append(Layer("dura", box, falx * fluid * soft_step(hull - 1, 1.5)))
    sinus = soft_step(np.hypot(x, 1.2 * (hull + 1)) - 3.6, 1.5) * soft_step(
        18 - z - 0.6 * y - 30, 8
    )
    layers.append(Layer("sinus", box, sinus * soft_step(-8 - z, 6)))
    return layers
