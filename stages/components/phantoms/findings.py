"""Findings that are no tumours: cysts, infarcts, bleedings and vascular malformations.

They stand where tumours do (`sites`), in all sizes and shapes, so that who learns from them learns
the words for places, sides, sizes and shapes, and not what a tumour looks like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stages.components.phantoms.acquisition import acquire, sample_scanner
from stages.components.phantoms.anatomy import BrainMaps, Warp, make_grid, sample_warp
from stages.components.phantoms.contrast import Tissue, render, sample_protocol
from stages.components.phantoms.fields import Array, soft_step
from stages.components.phantoms.shapes import EDGE_MM, Layer
from stages.components.phantoms.sites import (
    GLIOMA_REGIONS,
    MENINGIOMA_REGIONS,
    Plan,
    find_dura,
    find_white_matter,
    place_mass,
    plan_adenoma,
)
from stages.components.phantoms.subject import MODALITIES, build_anatomy, kept_of
from stages.components.phantoms.tumours import CORE, survey

BLOOD = Tissue(430, 110, 0.88, 0.02, 0.08)  # days old: bright on T1
PARENCHYMAL, DURAL, SELLAR = "parenchymal", "dural", "sellar"
PLACES = {PARENCHYMAL: 0.55, DURAL: 0.3, SELLAR: 0.15}
ANY_SHAPE = ("round", "oval", "lobulated", "irregular")
DIAMETERS_MM = (14.0, 60.0)


@dataclass(frozen=True)
class Kind:
    """One kind of finding: its words, the tissue it is made of, where it lies, its shapes."""

    name: str
    tissue: str
    place: str
    shapes: tuple[str, ...]


KINDS = (
    Kind("cyst", "csf", PARENCHYMAL, ("round", "oval", "lobulated")),
    Kind("infarct", "oedema", PARENCHYMAL, ANY_SHAPE),
    Kind("hematoma", "blood", PARENCHYMAL, ANY_SHAPE),
    Kind("vascular malformation", "vessel", PARENCHYMAL, ANY_SHAPE),
    Kind("arachnoid cyst", "csf", DURAL, ("round", "oval", "lobulated")),
    Kind("hematoma", "blood", DURAL, ("round", "oval", "lobulated")),
    Kind("aneurysm", "vessel", DURAL, ("round", "oval", "lobulated")),
    Kind("arachnoid cyst", "csf", SELLAR, ("round", "oval")),
    Kind("hematoma", "blood", SELLAR, ("round", "oval")),
    Kind("aneurysm", "vessel", SELLAR, ("round", "oval")),
)


@dataclass(frozen=True)
class Finding:
    """One finding in one head.

    Attributes:
        name: of `KINDS`.
        volumes: modality to float32 (i, j, k) in [0, 1], RAS orientation.
        mask: uint8 (i, j, k), `tumours.CORE` inside and 0 elsewhere.
        location: its region, in the words of tumours.
        side: left, right or midline of the subject.
        shape: round, oval, irregular or lobulated.
    """

    name: str
    volumes: dict[str, Array]
    mask: NDArray[np.uint8]
    location: str
    side: str
    shape: str


def build_findings(
    seed: int, count: int, *, spacing_mm: float = 1.5, skull_stripped: bool | None = None
) -> Iterator[Finding]:
    """Give one head `count` findings, one at a time; deterministic in `seed`.

    Args:
        seed: non-negative; picks the person and the findings.
        count: how many.
        spacing_mm: edge of the isotropic voxels.
        skull_stripped: as `build_subject` takes it.

    Yields:
        A head with one finding, by two modalities, which take turns; anatomy, protocol and scanner
        are the same for all.
    """
    anatomy, contrast, scan, kinds, noise = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(5)
    )
    grid = make_grid(spacing_mm)
    warp = sample_warp(anatomy, grid)
    head = build_anatomy(anatomy, warp, warp)
    protocol = sample_protocol(contrast)
    protocol = replace(protocol, tissues={**protocol.tissues, "blood": BLOOD})
    scanner = sample_scanner(scan, grid)
    is_stripped = scanner.is_stripped if skull_stripped is None else skull_stripped
    kept = kept_of(head.brain) if is_stripped else None
    healthy = {name: render(head.layers, protocol, name, head.texture) for name in MODALITIES}
    for number in range(count):
        kind, plan = plan_finding(kinds)
        layer = grow_finding(kind, plan, warp, head.brain)
        mask = np.zeros(grid.shape, np.uint8)
        mask[layer.box][layer.alpha > 0.5] = CORE
        volumes = {}
        for name in MODALITIES[:2] if number % 2 == 0 else MODALITIES[2:]:
            clean = render([layer], protocol, name, head.texture, onto=healthy[name])
            if kept is not None:
                clean *= np.maximum(kept, mask > 0)
            volumes[name] = acquire(clean, scanner, noise, protocol.gamma)
        yield Finding(kind.name, volumes, mask, plan.location, plan.side, plan.shape)


def plan_finding(rng: np.random.Generator) -> tuple[Kind, Plan]:
    """Choose where a finding lies, of which kind, size and shape; regions of a place are alike."""
    place = str(rng.choice(list(PLACES), p=list(PLACES.values())))
    kinds = [kind for kind in KINDS if kind.place == place]
    kind = kinds[int(rng.integers(len(kinds)))]
    shape = str(rng.choice(kind.shapes))
    if place == SELLAR:
        return kind, replace(plan_adenoma(rng), label=kind.name, shape=shape)
    radius = float(np.exp(rng.uniform(*np.log(DIAMETERS_MM)))) / 2
    regions, find = {
        PARENCHYMAL: (GLIOMA_REGIONS, find_white_matter),
        DURAL: (MENINGIOMA_REGIONS, find_dura),
    }[place]
    location = str(rng.choice(list(regions)))
    return kind, place_mass(rng, kind.name, shape, location, find(rng, location, radius))


def grow_finding(kind: Kind, plan: Plan, warp: Warp, brain: BrainMaps) -> Layer:
    """Grow a planned finding as one layer; its randomness is `plan.seed`."""
    site = survey(np.random.default_rng(plan.seed), plan, warp, brain)
    body = soft_step(site.distance, EDGE_MM)
    if kind.place != SELLAR:
        body *= soft_step(site.hull - 1.0, EDGE_MM)
    return Layer(kind.tissue, site.box, body)
