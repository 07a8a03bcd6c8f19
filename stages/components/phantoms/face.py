"""Face, skull base and neck, drawn from simple shapes whose sizes vary with the subject."""

from __future__ import annotations

import numpy as np

from stages.components.phantoms.anatomy import Warp
from stages.components.phantoms.fields import Array
from stages.components.phantoms.shapes import Layer, Painter, Triple


def build_face(rng: np.random.Generator, warp: Warp, fine: Array) -> list[Layer]:
    """Paint mouth, jaw, nose, sinuses and orbits; `fine` roughens the walls of the sinuses."""
    paint = Painter(warp, rng)
    size = float(rng.uniform(0.92, 1.08))
    eye = paint.vary((31.0, 62.0, -36.0), 1.5)
    sinus, jaw = (float(v) for v in rng.uniform(0.75, 1.15, 2))
    build_mouth(paint, jaw, fine)
    for side in (-1, 1):
        paint.ellipsoid(
            "air",
            (side * 30, 48, -66),
            (15 * sinus, 19 * sinus, 18 * sinus),
            rough=(fine, 1.0),
            wall=("mucosa", 1.5),
        )
        paint.ellipsoid("air", (side * 6, 60, -64), (4.5, 30, 20), wall=("mucosa", 2))
        for height in (-74.0, -63.0, -53.0):
            centre = paint.vary((side * rng.uniform(6, 9), 59, height), 1.5)
            depth, thick = float(rng.uniform(14, 22)), float(rng.uniform(2.0, 4.5))
            paint.ellipsoid("mucosa", centre, (3.0, depth, thick), rough=(fine, 1.3))
        paint.ellipsoid("air", (side * 8, 46, -42), (6, 20, 10), rough=(fine, 2.0))
        if sinus > 0.85:
            paint.ellipsoid("air", (side * 13, 84, -20), (11, 5, 12 * sinus), wall=("bone", 2))
        paint.capsule("bone", (side * 50, 52, -52), (side * 70, -6, -50), 3.5)
        paint.capsule("marrow", (side * 48, 54, -54), (side * 68, 0, -50), 1.8)
        build_orbit(paint, side, eye, size)
    paint.ellipsoid("bone", (0, 62, -62), (1.2, 32, 22))
    return paint.layers


def build_mouth(paint: Painter, jaw: float, fine: Array) -> None:
    """Paint tongue, teeth, palate, jaw with its muscles, throat and parotid glands."""
    paint.ellipsoid("tongue", paint.vary((0, 50, -104), 2), (21, 30, 17), rough=(fine, 0.8))
    paint.ellipsoid("fat", (0, 48, -120), (3, 22, 5), opacity=0.7)
    paint.ellipsoid("marrow", (0, 78, -90), (20, 10, 6), wall=("bone", 1.5))
    paint.ellipsoid("bone", (0, 80, -98), (22, 9, 7), rough=(fine, 1.5))
    paint.ellipsoid("marrow", (0, 74, -120), (15, 7, 8), wall=("bone", 2))
    paint.capsule("bone", (-28, 50, -86), (28, 50, -86), 2.5)
    paint.ellipsoid("air", (0, 8, -88), (10, 7, 24), rough=(fine, 1.0), wall=("mucosa", 2))
    paint.ellipsoid("air", (0, 2, -125), (10, 6, 24), wall=("mucosa", 1.5))
    for side in (-1, 1):
        paint.ellipsoid("fat", (side * 46, 50, -84), (11, 14, 20), opacity=0.85)
        paint.capsule("marrow", (side * 16, 76, -120), (side * 46, 22, -112), 5.0 * jaw)
        paint.ellipsoid("muscle", (side * 57, 20, -92), (6.5, 17, 27), wall=("fat", 1.5))
        paint.ellipsoid("muscle", (side * 37, 16, -76), (8, 16, 22), wall=("fat", 1.5))
        paint.capsule("bone", (side * 46, 22, -112), (side * 52, 8, -62), 4.5)
        paint.capsule("marrow", (side * 46, 22, -110), (side * 52, 10, -66), 2.5)
        paint.ellipsoid("gland", (side * 62, -4, -84), (9, 13, 21), rough=(fine, 1.0))


def build_orbit(paint: Painter, side: int, eye: Triple, size: float) -> None:
    """Paint one orbit: fat cone, globe with lens, optic nerve and four muscles."""
    x, y, z = side * eye[0], eye[1], eye[2]
    apex = (side * 13.0, y - 42, z + 3)
    paint.ellipsoid("fat", (x - side * 3, y - 11, z), (19, 26, 18), wall=("bone", 1.5))
    for dx, dz in ((0, 11), (0, -11), (11, 0), (-11, 0)):
        paint.capsule("muscle", (x + dx, y - 5, z + dz), apex, 2.2)
    paint.capsule("nerve", (x, y - 11, z), apex, 2.2)
    paint.ellipsoid("vitreous", (x, y, z), (12 * size,) * 3, wall=("sclera", 1.4))
    paint.ellipsoid("lens", (x, y + 8.5 * size, z), (4.6, 2.4, 4.6))


def build_ears(rng: np.random.Generator, warp: Warp, fine: Array) -> list[Layer]:
    """Paint the auricles; they stand outside the body surface."""
    paint = Painter(warp, rng)
    lift = float(rng.normal(0, 3))
    for side in (-1, 1):
        centre = (side * 82.0, -26.0, -44.0 + lift)
        paint.ellipsoid("skin", centre, (4.5, 15, 27), rough=(fine, 1.2))
        paint.ellipsoid("air", (side * 85, -22, -46 + lift), (3, 8, 14), rough=(fine, 1.5))
        paint.ellipsoid("fat", (side * 82, -24, -66 + lift), (3, 6, 7))
    return paint.layers


def build_skull_base(rng: np.random.Generator, warp: Warp, fine: Array) -> list[Layer]:
    """Paint clivus, sella, cavernous sinuses, petrous bones with air cells, great vessels."""
    paint = Painter(warp, rng)
    air = float(rng.uniform(0.7, 1.2))
    paint.ellipsoid("bone", (0, -14, -52), (36, 27, 14), opacity=0.85, rough=(fine, 2.5))
    paint.capsule("bone", (0, -8, -38), (0, -26, -66), 7)
    paint.capsule("marrow", (0, -6, -40), (0, -24, -66), 5)
    for side in (-1, 1):
        paint.ellipsoid(
            "air", (side * 7, 17, -46), (8, 14, 9 * air), rough=(fine, 0.7), wall=("mucosa", 1.2)
        )
    paint.ellipsoid("csf", (0, 4, -27), (11, 9, 5))
    paint.ellipsoid("gland", (0, 2, -33), (7, 5.5, 4), wall=("bone", 0.8))
    paint.capsule("gland", (0, 2, -33), (0, -1, -22), 1.0)
    for side in (-1, 1):
        paint.ellipsoid("sinus", (side * 12, 2, -33), (4.5, 9, 6))
        paint.capsule("vessel", (side * 11, -6, -36), (side * 11, 10, -33), 2.2)
        paint.capsule("bone", (side * 14, -18, -44), (side * 58, -34, -46), 8)
        paint.capsule("marrow", (side * 16, -18, -44), (side * 36, -28, -45), 3.5, opacity=0.7)
        paint.ellipsoid("air", (side * 60, -34, -52), (11, 13, 16), opacity=0.8, rough=(fine, 5))
        paint.capsule("air", (side * 62, -18, -48), (side * 85, -18, -48), 3)
        paint.capsule("csf", (side * 20, -22, -42), (side * 28, -24, -42), 2)
        paint.capsule("vessel", (side * 24, -8, -60), (side * 28, -10, -140), 3)
        paint.capsule("sinus", (side * 34, -16, -62), (side * 38, -14, -140), 4.5)
    return paint.layers


def build_spine(rng: np.random.Generator, warp: Warp) -> list[Layer]:
    """Paint vertebrae, discs, the canal with its cord, and the muscles behind them."""
    paint = Painter(warp, rng)
    lean = float(rng.normal(0, 0.12))
    for level in range(5):
        z = -80.0 - 17 * level
        y = -22.0 + lean * (z + 80)
        paint.ellipsoid("marrow", (0, y, z), (11, 9, 8), wall=("bone", 0.8))
        paint.ellipsoid("disc", (0, y, z - 8.5), (10, 8, 2.2))
        paint.capsule("marrow", (0, y - 34, z - 2), (0, y - 50, z - 8), 3.5)
        for side in (-1, 1):
            paint.capsule("bone", (side * 13, y - 6, z), (side * 22, y - 10, z), 4)
    for side in (-1, 1):
        for x, behind, radius in ((14.0, 40.0, 9.0), (30.0, 34.0, 9.5), (40.0, 12.0, 8.0)):
            top = (side * x, -22.0 - behind, -78.0)
            bottom = (side * x, -22.0 - behind + lean * -70, -150.0)
            paint.capsule("fat", top, bottom, radius + 1.0, opacity=0.8)
            paint.capsule("muscle", top, bottom, radius, opacity=0.9)
    low = -22.0 + lean * -70
    paint.capsule("csf", (0, -46, -64), (0, low - 19, -150), 8)
    paint.capsule("nerve", (0, -46, -64), (0, low - 19, -150), 4.8)
    return paint.layers
