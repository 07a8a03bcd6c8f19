"""Tumours grown in three dimensions: glioma, meningioma and pituitary adenoma."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stages.components.phantoms.anatomy import Box, BrainMaps, Warp
from stages.components.phantoms.fields import Array, smooth_noise, soft_step
from stages.components.phantoms.shapes import EDGE_MM, Layer
from stages.components.phantoms.sites import Plan

OEDEMA, ENHANCING, CORE = 1, 2, 3
# Relative departure of the surface from the planned ellipsoid.
ROUGHNESS = {"round": 0.05, "oval": 0.06, "lobulated": 0.16, "irregular": 0.28}
HIGH_GRADE = 0.78


@dataclass(frozen=True)
class Growth:
    """A grown tumour: layers to paint, the label mask over `box` (uint8), diameter in mm."""

    layers: list[Layer]
    box: Box
    mask: NDArray[np.uint8]
    diameter_mm: float


@dataclass(frozen=True)
class Site:
    """Fields over a tumour's box: `distance` and `hull` in mm, fractions, unit noise."""

    box: Box
    radius: float
    distance: Array
    hull: Array
    parenchyma: Array
    white: Array
    lumps: Array
    fine: Array


@dataclass(frozen=True)
class Regions:
    """Opacity of oedema, whole tumour and the part that does not enhance, with their layers."""

    layers: list[Layer]
    oedema: Array
    body: Array
    inner: Array


def push_tissue(warp: Warp, plan: Plan) -> Warp:
    """Displace tissue away from the tumour: sample nearer to its centre, decaying outwards."""
    centre = plan.centre_mm.astype(np.float32)
    radius = float(np.mean(plan.radii_mm))
    coords = warp.coords.copy()
    part = coords[(slice(None), *warp.box_about(plan.centre_mm, 3.3 * radius))]
    offset = part - centre.reshape(3, 1, 1, 1)
    distance2 = np.sum(offset * offset, axis=0)
    strength = np.float32(0.4 if plan.label == "glioma" else 0.55)
    part -= offset * (strength * np.exp(-distance2 / np.float32(2 * (0.95 * radius) ** 2)))
    return replace(warp, coords=coords)


def grow(plan: Plan, warp: Warp, brain: BrainMaps) -> Growth:
    """Grow the planned tumour on the subject's grid; its randomness is `plan.seed`.

    `warp` is the one without mass effect, so that the tumour keeps its planned size.
    """
    rng = np.random.default_rng(plan.seed)
    site = survey(rng, plan, warp, brain)
    if plan.label == "glioma":
        regions = grow_glioma(rng, site)
    elif plan.label == "meningioma":
        regions = grow_meningioma(rng, site)
    else:
        regions = grow_adenoma(rng, site)
    mask = np.zeros(site.distance.shape, np.uint8)
    mask[regions.oedema > 0.5] = OEDEMA
    mask[regions.body > 0.5] = ENHANCING
    mask[(regions.inner > 0.5) & (mask == ENHANCING)] = CORE
    volume_mm3 = float(np.count_nonzero(mask >= ENHANCING)) * warp.grid.spacing_mm**3
    return Growth(regions.layers, site.box, mask, float((6 * volume_mm3 / np.pi) ** (1 / 3)))


def survey(rng: np.random.Generator, plan: Plan, warp: Warp, brain: BrainMaps) -> Site:
    """Measure distance to the rough tumour surface, and cut the brain maps to its box."""
    step = warp.grid.spacing_mm
    radius = float(np.mean(plan.radii_mm))
    box = warp.box_about(plan.centre_mm, float(np.max(plan.radii_mm)) * 1.7 + 14)
    coords = warp.coords[(slice(None), *box)]
    shape = (coords.shape[1], coords.shape[2], coords.shape[3])
    centre = plan.centre_mm.astype(np.float32).reshape(3, 1, 1, 1)
    scaled = (coords - centre) / plan.radii_mm.astype(np.float32).reshape(3, 1, 1, 1)
    norm = np.sqrt(np.sum(scaled * scaled, axis=0))
    lumps = smooth_noise(rng, shape, max(0.75 * radius / step, 1.5))
    fine = smooth_noise(rng, shape, max(0.3 * radius / step, 1.5))
    rough = np.float32(ROUGHNESS[plan.shape]) * (lumps + np.float32(0.4) * fine)
    distance = np.float32(radius) * (norm - 1 + rough)
    parenchyma, white = cut_maps(brain, box)
    return Site(box, radius, distance, brain.hull_mm[box], parenchyma, white, lumps, fine)


def grow_oedema(rng: np.random.Generator, site: Site) -> Array:
    """Return oedema: wide along white matter, little in grey, none in fluid."""
    extent = rng.uniform(0.15, 1.0) * min(site.radius, 14.0) + 2
    spread = np.float32(extent) * (0.15 + 1.4 * site.white + 0.5 * site.lumps)
    oedema: Array = soft_step(site.distance - spread, 3.0) * site.parenchyma
    return oedema * np.maximum(site.white, np.float32(0.25))


def grow_glioma(rng: np.random.Generator, site: Site) -> Regions:
    """Grow oedema and core; most enhance at an uneven rim about necrosis, some not at all."""
    inside = soft_step(site.hull + 1.0, EDGE_MM)
    body = soft_step(site.distance, 2.0) * inside
    oedema = grow_oedema(rng, site) * inside
    layers = [Layer("oedema", site.box, oedema * np.float32(0.9))]
    if rng.random() >= HIGH_GRADE:
        layers.append(Layer("solid", site.box, body * np.float32(0.9)))
        return Regions(layers, oedema, body, body)
    thickness = rng.uniform(0.12, 0.5) * site.radius + 1.2
    rim = np.float32(thickness) * (1 + 0.45 * site.fine + 0.3 * site.lumps)
    inner = soft_step(site.distance + np.maximum(rim, np.float32(0.8)), EDGE_MM) * body
    patchy = np.clip(np.float32(rng.uniform(0.7, 1.1)) + np.float32(0.22) * site.fine, 0.45, 1)
    layers += [
        Layer("solid", site.box, body),
        Layer("enhancing", site.box, body * patchy),
        Layer("necrosis", site.box, inner),
    ]
    if rng.random() < 0.5:
        clumps = inner * np.clip(site.lumps + np.float32(rng.uniform(-0.2, 0.6)), 0, 1)
        layers.append(Layer("solid", site.box, clumps))
    return Regions(layers, oedema, body, inner)


def grow_meningioma(rng: np.random.Generator, site: Site) -> Regions:
    """Grow an even, enhancing mass inside the skull, with a cleft of fluid about it."""
    inside = soft_step(site.hull - 1.0, EDGE_MM)
    body = soft_step(site.distance, EDGE_MM) * inside
    layers = []
    oedema = np.zeros_like(body)
    if rng.random() < 0.5:
        oedema = grow_oedema(rng, site) * inside
        layers.append(Layer("oedema", site.box, oedema * np.float32(0.9)))
    if rng.random() < 0.5:
        on_dura = soft_step(np.abs(site.hull) - 1.2, EDGE_MM)
        layers.append(Layer("meningioma", site.box, soft_step(site.distance - 10, 8.0) * on_dura))
    cleft = soft_step(site.distance - 1.0, EDGE_MM) * inside * np.float32(rng.uniform(0, 0.8))
    layers += [Layer("csf", site.box, cleft), Layer("meningioma", site.box, body)]
    if rng.random() < 0.3:
        calcified = body * np.clip(site.fine - np.float32(0.9), 0, 0.8)
        layers.append(Layer("bone", site.box, calcified))
    return Regions(layers, oedema, body, np.zeros_like(body))


def grow_adenoma(rng: np.random.Generator, site: Site) -> Regions:
    """Grow an enhancing mass out of the sella; some large ones hold a cyst."""
    body = soft_step(site.distance, EDGE_MM)
    cleft = soft_step(site.distance - 1.0, EDGE_MM) * np.float32(rng.uniform(0, 0.8))
    layers = [Layer("csf", site.box, cleft), Layer("adenoma", site.box, body)]
    inner = np.zeros_like(body)
    if rng.random() < 0.25 and site.radius > 6:
        inner = soft_step(site.distance + 0.4 * site.radius, EDGE_MM) * body
        layers.append(Layer("necrosis", site.box, inner))
    return Regions(layers, np.zeros_like(body), body, inner)


def cut_maps(brain: BrainMaps, box: Box) -> tuple[Array, Array]:
    """Return parenchyma and white-matter fractions on another box, 0 beyond the brain box."""
    shape = tuple(s.stop - s.start for s in box)
    cut = np.zeros((2, *shape), np.float32)
    into: list[slice] = []
    of: list[slice] = []
    for own, theirs in zip(box, brain.box, strict=True):
        low, high = max(own.start, theirs.start), min(own.stop, theirs.stop)
        into.append(slice(low - own.start, high - own.start))
        of.append(slice(low - theirs.start, high - theirs.start))
    inner = (into[0], into[1], into[2])
    outer = (of[0], of[1], of[2])
    cut[0][inner] = brain.parenchyma[outer]
    cut[1][inner] = brain.white[outer]
    return cut[0], cut[1]
