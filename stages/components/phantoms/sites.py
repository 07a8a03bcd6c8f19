"""Where tumours grow: region, side, size and shape, drawn before anything is grown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.components.phantoms.anatomy import (
    HULL_ORIGIN_MM,
    HULL_SPACING_MM,
    TEMPLATE_ORIGIN_MM,
    load_template,
    sample_volume,
)

# How often a glioma arises in each region.
GLIOMA_REGIONS = {
    "frontal lobe": 0.30,
    "temporal lobe": 0.24,
    "parietal lobe": 0.20,
    "occipital lobe": 0.09,
    "basal ganglia": 0.10,
    "cerebellum": 0.07,
}
MENINGIOMA_REGIONS = {"convexity": 0.5, "falx": 0.22, "skull base": 0.16, "posterior fossa": 0.12}
LOCATIONS = (*GLIOMA_REGIONS, *MENINGIOMA_REGIONS, "sellar region")
GLIOMA_SHAPES = {"irregular": 0.55, "oval": 0.15, "round": 0.1, "lobulated": 0.2}
MENINGIOMA_SHAPES = {"round": 0.45, "oval": 0.3, "lobulated": 0.25}
DIAMETERS_MM = (14.0, 55.0)  # of gliomas and meningiomas, where there is room

Points = NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """A tumour before it is grown: MNI centre in mm, radii in mm, words, and its own seed."""

    label: str
    centre_mm: NDArray[np.float64]
    radii_mm: NDArray[np.float64]
    shape: str
    location: str
    side: str
    seed: int


def name_regions(points: Points) -> NDArray[np.str_]:
    """Name the brain region of MNI points (3, n) by coarse planes between the lobes."""
    x, y, z = np.abs(points[0]), points[1], points[2]
    sylvian = 4 - 0.3 * np.minimum(y + 15, 0)
    regions = [
        ("cerebellum", (z < -22) & (y < -42)),
        ("basal ganglia", (x > 8) & (x < 34) & (y > -32) & (y < 22) & (z > -10) & (z < 18)),
        ("temporal lobe", (x > 26) & (z < sylvian) & (y > -58) & (y < 18)),
        ("occipital lobe", y < -66 + 0.3 * np.maximum(z - 20, 0)),
        ("parietal lobe", y < -18 - 0.15 * (z - 40)),
    ]
    names: NDArray[np.str_] = np.select(
        [inside for _, inside in regions], [name for name, _ in regions], default="frontal lobe"
    )
    return names


def name_side(x_mm: float) -> str:
    """Return the subject's side of an x coordinate in RAS mm; 4 mm about zero is midline."""
    if abs(x_mm) < 4:
        return "midline"
    return "left" if x_mm < 0 else "right"


def choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """Draw one key by its weight."""
    return str(rng.choice(list(weights), p=list(weights.values())))


def plan_tumour(rng: np.random.Generator, label: str) -> Plan:
    """Choose where a tumour of class `label` grows, its size and its shape class."""
    if label == "pituitary":
        return plan_adenoma(rng)
    radius = float(np.exp(rng.uniform(*np.log(DIAMETERS_MM)))) / 2
    is_glioma = label == "glioma"
    location = choose(rng, GLIOMA_REGIONS if is_glioma else MENINGIOMA_REGIONS)
    find = find_white_matter if is_glioma else find_dura
    shape = choose(rng, GLIOMA_SHAPES if is_glioma else MENINGIOMA_SHAPES)
    return place_mass(rng, label, shape, location, find(rng, location, radius))


def place_mass(
    rng: np.random.Generator,
    label: str,
    shape: str,
    location: str,
    found: tuple[NDArray[np.float64], float],
) -> Plan:
    """Plan a mass at a point (MNI mm) of a largest radius in mm, stretched as its shape allows."""
    point, radius = found
    stretch = rng.uniform(0.92, 1.08, 3) if shape == "round" else rng.uniform(0.7, 1.2, 3)
    return Plan(
        label=label,
        centre_mm=point,
        radii_mm=radius * stretch / np.max(stretch),
        shape=shape,
        location=location,
        side=name_side(float(point[0])),
        seed=int(rng.integers(2**63)),
    )


def plan_adenoma(rng: np.random.Generator) -> Plan:
    """Plan a pituitary adenoma, 10 to 32 mm high, that grows upwards out of the sella."""
    height = float(np.exp(rng.uniform(np.log(10), np.log(32)))) / 2
    wide = height * rng.uniform(0.75, 1.1)
    radii = np.array([wide, min(wide * rng.uniform(0.85, 1.1), 13), height])
    centre = np.array([rng.normal(0, 0.8), 2.0 + rng.normal(0, 1), -37 + height * 0.85])
    shape = "round" if max(radii) / min(radii) < 1.2 else "oval"
    seed = int(rng.integers(2**63))
    return Plan("pituitary", centre, radii, shape, "sellar region", "midline", seed)


def draw_points(rng: np.random.Generator) -> tuple[Points, Points, Points]:
    """Draw 3,000 points of the brain's box: MNI mm (3, n), depth in mm, white matter in [0, 1]."""
    template = load_template()
    points = rng.uniform([-72, -106, -58], [72, 72, 80], (3000, 3)).T.astype(np.float32)
    depth = -sample_volume(template.hull, points, HULL_ORIGIN_MM, HULL_SPACING_MM)
    return points, depth, sample_volume(template.wm, points, TEMPLATE_ORIGIN_MM, 1.0)


def find_white_matter(
    rng: np.random.Generator, location: str, radius: float
) -> tuple[NDArray[np.float64], float]:
    """Find a point of white matter in a region; the radius shrinks until one is deep enough."""
    while True:
        points, depth, white = draw_points(rng)
        x, _, z = points
        in_brainstem = (np.abs(x) < 20) & (z < -12)
        fits = (white > 0.4) & (depth > 0.45 * radius) & (np.abs(x) > 8) & ~in_brainstem
        found = np.flatnonzero(fits & (name_regions(points) == location))
        if found.size:
            return points[:, found[0]].astype(np.float64), radius
        radius *= 0.93


def find_dura(
    rng: np.random.Generator, location: str, radius: float
) -> tuple[NDArray[np.float64], float]:
    """Find the centre of a tumour that touches the dura of a region from inside."""
    while True:
        points, depth, _ = draw_points(rng)
        x, y, z = points
        behind = (y < -40) & (z < -14)
        touching = np.abs(depth - 0.72 * radius) < 1.0
        fits = {
            "falx": (np.abs(x) < 20) & (z > 26) & (depth > 0.6 * radius),
            "posterior fossa": touching & behind & (z > -50),
            "skull base": touching & ~behind & (z < -8) & (z > -32) & (y > -30),
            "convexity": touching & ~behind & (z > 0) & (np.abs(x) > 10),
        }[location]
        found = np.flatnonzero(fits)
        if found.size:
            point = points[:, found[0]].astype(np.float64)
            if location == "falx":
                point[0] = np.sign(point[0]) * (0.75 * radius + 1)
            return point, radius
        radius *= 0.93
