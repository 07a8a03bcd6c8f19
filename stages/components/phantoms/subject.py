"""One phantom subject: anatomy, optional tumour and images, all from a seed and a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.components.phantoms.acquisition import acquire, sample_scanner
from stages.components.phantoms.anatomy import (
    BrainMaps,
    Warp,
    make_grid,
    sample_brain,
    sample_warp,
)
from stages.components.phantoms.brain import build_brain
from stages.components.phantoms.contrast import render, sample_protocol, sample_texture
from stages.components.phantoms.fields import Array, soft_step
from stages.components.phantoms.head import build_head
from stages.components.phantoms.shapes import Layer
from stages.components.phantoms.sites import Plan, plan_tumour
from stages.components.phantoms.tumours import Growth, grow, push_tissue

LABELS = ("notumor", "glioma", "meningioma", "pituitary")
MODALITIES = ("t1", "t1ce", "t2", "flair")


@dataclass(frozen=True)
class PhantomSubject:
    """Volumes of one made-up person, with ground truth.

    Attributes:
        label: one of `LABELS`.
        volumes: modality to float32 (i, j, k) in [0, 1], RAS orientation, Rician noise included.
        mask: uint8 (i, j, k): 0 none, 1 oedema, 2 enhancing tumour, 3 core that does not enhance.
        affine: float64 (4, 4), voxel to RAS+ mm.
        location: region of the tumour, or None without one.
        side: left, right or midline of the subject (not of the image), or None.
        shape: round, oval, irregular or lobulated, as grown, or None.
        diameter_mm: diameter of the ball with the volume of mask >= 2, or None.
    """

    label: str
    volumes: dict[str, Array]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]
    location: str | None
    side: str | None
    shape: str | None
    diameter_mm: float | None


@dataclass(frozen=True)
class Anatomy:
    """A healthy head: its brain maps, layers in painting order, and texture (i, j, k)."""

    brain: BrainMaps
    layers: list[Layer]
    texture: Array


def build_anatomy(rng: np.random.Generator, warp: Warp, pushed: Warp) -> Anatomy:
    """Build a healthy head in one warp, its brain in another that a tumour has pushed aside."""
    brain = sample_brain(rng, warp, pushed)
    layers = build_head(rng, warp, brain.hull_mm)
    layers += build_brain(rng, pushed, brain)
    return Anatomy(brain, layers, sample_texture(rng, warp.grid.shape, warp.grid.spacing_mm))


def kept_of(brain: BrainMaps) -> Array:
    """Return what skull stripping keeps, float32 (i, j, k) in [0, 1]."""
    return soft_step(brain.hull_mm - 0.5, 2.0)


def build_subject(
    seed: int, label: str, *, modalities: Sequence[str] = MODALITIES, spacing_mm: float = 1.5,
    skull_stripped: bool | None = None,
) -> PhantomSubject:  # fmt: skip
    """Build one subject; deterministic in (seed, label), whatever modalities are asked for.

    Anatomy, contrast, scanner and tumour have separate random streams, so one seed with two labels
    gives one head with and without a tumour.

    Args:
        seed: non-negative; picks the person.
        label: picks the tumour.
        modalities: volumes to render, of `MODALITIES`.
        spacing_mm: edge of the isotropic voxels; texture is drawn on the grid, so subjects of two
            spacings differ in detail.
        skull_stripped: nothing but brain and tumour is left, or the whole head; None draws it, one
            subject in twelve stripped.

    Raises:
        ValueError: unknown label or modality, or a negative seed.
    """
    if label not in LABELS:
        raise ValueError(f"label {label!r} is not one of {', '.join(LABELS)}")
    if seed < 0:
        raise ValueError(f"seed {seed!r} is negative; expected 0 or more")
    for modality in modalities:
        if modality not in MODALITIES:
            raise ValueError(f"modality {modality!r} is not one of {', '.join(MODALITIES)}")
    anatomy, contrast, scan, tumour, *noise = (
        np.random.default_rng(child)
        for child in np.random.SeedSequence(seed).spawn(4 + len(MODALITIES))
    )
    grid = make_grid(spacing_mm)
    warp = sample_warp(anatomy, grid)
    plan: Plan | None = None
    growth: Growth | None = None
    pushed = warp
    if label != "notumor":
        own_seed = [int(tumour.integers(2**32)), LABELS.index(label)]
        plan = plan_tumour(np.random.default_rng(own_seed), label)
        pushed = push_tissue(warp, plan)
    head = build_anatomy(anatomy, warp, pushed)
    layers = head.layers
    if plan is not None:
        growth = grow(plan, warp, head.brain)
        layers = [*layers, *growth.layers]
    protocol = sample_protocol(contrast)
    scanner = sample_scanner(scan, grid)
    is_stripped = scanner.is_stripped if skull_stripped is None else skull_stripped
    kept = kept_of(head.brain) if is_stripped else None
    mask = np.zeros(grid.shape, np.uint8)
    if growth is not None:
        mask[growth.box] = growth.mask
    if kept is not None:
        np.maximum(kept, mask > 0, out=kept)  # a sellar tumour lies below the brain's hull
    volumes = {}
    for modality in modalities:
        clean = render(layers, protocol, modality, head.texture)
        if kept is not None:
            clean *= kept
        rng = noise[MODALITIES.index(modality)]
        volumes[modality] = acquire(clean, scanner, rng, protocol.gamma)
    return PhantomSubject(
        label=label,
        volumes=volumes,
        mask=mask,
        affine=grid.affine(),
        location=plan.location if plan else None,
        side=plan.side if plan else None,
        shape=plan.shape if plan else None,
        diameter_mm=growth.diameter_mm if growth else None,
    )
