"""Signal models: from tissue layers to T1, contrast-enhanced T1, T2 and FLAIR volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.components.phantoms.fields import Array, smooth_noise
from stages.components.phantoms.shapes import Layer


@dataclass(frozen=True)
class Tissue:
    """Relaxation times in ms, proton density in [0, 1], gadolinium in mM, relative texture."""

    t1: float
    t2: float
    pd: float
    gadolinium: float = 0.0
    texture: float = 0.03


TISSUES: dict[str, Tissue] = {
    "air": Tissue(1000, 1, 0.0),
    "muscle": Tissue(950, 40, 0.85, 0.06, 0.14),
    "tongue": Tissue(800, 48, 0.85, 0.1, 0.18),
    "fat": Tissue(260, 105, 0.88, 0.0, 0.10),
    "skin": Tissue(550, 45, 0.72, 0.08, 0.10),
    "bone": Tissue(600, 6, 0.12, 0.0, 0.3),
    "marrow": Tissue(380, 65, 0.55, 0.03, 0.15),
    "disc": Tissue(1100, 70, 0.7, 0.0, 0.1),
    "gland": Tissue(900, 70, 0.85, 0.25, 0.08),
    "mucosa": Tissue(1300, 110, 0.88, 0.5, 0.15),
    "sclera": Tissue(900, 35, 0.6, 0.1, 0.05),
    "vitreous": Tissue(4000, 1200, 1.0, 0.0, 0.01),
    "lens": Tissue(900, 28, 0.7, 0.0, 0.03),
    "nerve": Tissue(700, 78, 0.72, 0.0, 0.04),
    "dura": Tissue(1000, 45, 0.6, 0.5, 0.2),
    "vessel": Tissue(1500, 25, 0.35, 1.6, 0.05),
    "sinus": Tissue(1500, 60, 0.6, 1.3, 0.08),
    "choroid": Tissue(1500, 150, 0.9, 0.8, 0.2),
    "csf": Tissue(4200, 1600, 1.0, 0.0, 0.02),
    "grey": Tissue(1080, 93, 0.81, 0.02, 0.045),
    "white": Tissue(660, 80, 0.72, 0.01, 0.035),
    "pallidum": Tissue(850, 62, 0.75, 0.01, 0.04),
    "lesion": Tissue(1250, 150, 0.86, 0.0, 0.05),
    "oedema": Tissue(1400, 165, 0.88, 0.02, 0.06),
    "enhancing": Tissue(1350, 125, 0.88, 0.55, 0.14),
    "solid": Tissue(1500, 160, 0.88, 0.06, 0.10),
    "necrosis": Tissue(2700, 380, 0.96, 0.03, 0.08),
    # At the dark end of what they are on T1: as dark as grey matter they would be captioned, and
    # asked for, where nobody could see them.
    "meningioma": Tissue(1500, 120, 0.87, 0.65, 0.06),
    "adenoma": Tissue(1250, 110, 0.87, 0.45, 0.06),
}


# Upper end of the log of the display window; clinical T1 slices are mostly dark.
WINDOW_LOG_MAX = {"t1": 0.6, "t1ce": 0.7, "t2": 0.35, "flair": 0.45}
# How often fat is suppressed.
FAT_SATURATED = {"t1": 0.05, "t1ce": 0.12, "t2": 0.3, "flair": 0.3}


@dataclass(frozen=True)
class Protocol:
    """One subject's acquisition: times in ms, jittered tissues, display window and gamma."""

    tissues: dict[str, Tissue]
    t1_times: tuple[float, float, float | None]
    t2_times: tuple[float, float]
    flair_times: tuple[float, float, float]
    dose: float
    window: dict[str, float]
    fat_signal: dict[str, float]
    gamma: float


def sample_protocol(rng: np.random.Generator) -> Protocol:
    """Draw sequence times, contrast dose, tissue jitter and windowing; deterministic in `rng`."""
    tissues = {}
    for name, tissue in TISSUES.items():
        spread = 0.4 if name in ("grey", "white") else 1.0
        jitter = np.exp(rng.normal(0, [0.06 * spread, 0.07 * spread, 0.02, 0.2, 0.25]))
        tissues[name] = Tissue(
            tissue.t1 * jitter[0],
            tissue.t2 * jitter[1],
            tissue.pd * jitter[2],
            tissue.gadolinium * jitter[3],
            tissue.texture * jitter[4],
        )
    inversion = float(rng.uniform(850, 1150)) if rng.random() < 0.35 else None
    repetition = float(rng.uniform(1700, 2300)) if inversion else float(rng.uniform(380, 750))
    # One T2 in eight is weighted by proton density, as in a dual-echo study.
    echo = float(rng.uniform(18, 45) if rng.random() < 0.12 else rng.uniform(75, 120))
    return Protocol(
        tissues=tissues,
        t1_times=(repetition, float(rng.uniform(3, 15)), inversion),
        t2_times=(float(rng.uniform(2800, 6000)), echo),
        flair_times=(
            float(rng.uniform(7500, 10500)),
            float(rng.uniform(80, 140)),
            float(rng.uniform(-80, 60)),
        ),
        dose=float(rng.uniform(0.7, 1.4)),
        window={n: float(np.exp(rng.uniform(-0.2, b))) for n, b in WINDOW_LOG_MAX.items()},
        fat_signal={
            n: float(rng.uniform(0.1, 0.5)) if rng.random() < p else 1.0
            for n, p in FAT_SATURATED.items()
        },
        gamma=float(np.exp(rng.normal(0, 0.12))),
    )


def compute_signal(protocol: Protocol, tissue: Tissue, modality: str) -> float:
    """Return the signal of one tissue by the spin-echo or inversion-recovery equation.

    Raises:
        ValueError: `modality` is not one of t1, t1ce, t2, flair.
    """
    t1 = tissue.t1
    if modality in ("t1", "t1ce"):
        if modality == "t1ce":
            t1 = 1000 / (1000 / t1 + 4.5 * protocol.dose * tissue.gadolinium)
        repetition, echo, inversion = protocol.t1_times
        recovered = 1 - np.exp(-repetition / t1)
        if inversion is not None:
            recovered = abs(1 - 2 * np.exp(-inversion / t1) + np.exp(-repetition / t1))
    elif modality == "t2":
        repetition, echo = protocol.t2_times
        recovered = 1 - np.exp(-repetition / t1)
    elif modality == "flair":
        repetition, echo, offset = protocol.flair_times
        csf = protocol.tissues["csf"].t1
        null = csf * (np.log(2) - np.log1p(np.exp(-repetition / csf)))
        inversion = null + offset
        recovered = abs(1 - 2 * np.exp(-inversion / t1) + np.exp(-repetition / t1))
    else:
        raise ValueError(f"modality {modality!r} is not one of t1, t1ce, t2, flair")
    return float(tissue.pd * recovered * np.exp(-echo / tissue.t2))


def render(
    layers: Sequence[Layer],
    protocol: Protocol,
    modality: str,
    texture: Array,
    onto: Array | None = None,
) -> Array:
    """Composite the layers into one noise-free volume, float32 (i, j, k), about [0, 1].

    `onto` is what earlier layers have been rendered to; it is copied.
    """
    signals = {n: compute_signal(protocol, t, modality) for n, t in protocol.tissues.items()}
    full_fat = signals["fat"]
    for fatty in ("fat", "marrow"):
        signals[fatty] *= protocol.fat_signal[modality]
    reference = max(
        1.5 * signals["white"],
        1.5 * signals["grey"],
        0.9 * full_fat,
        0.9 * signals["csf"],
    )
    scale = 1 / (reference * protocol.window[modality])
    volume = np.zeros(texture.shape, np.float32) if onto is None else onto.copy()
    for layer in layers:
        amplitude = protocol.tissues[layer.tissue].texture
        colour = texture[layer.box] * np.float32(amplitude)
        colour += 1
        colour *= np.float32(signals[layer.tissue] * scale)
        part = volume[layer.box]
        colour -= part
        colour *= layer.alpha
        part += colour
    return volume


def sample_texture(rng: np.random.Generator, shape: tuple[int, int, int], spacing: float) -> Array:
    """Draw unit-variance texture with detail at about 2, 4 and 10 mm."""
    total = np.zeros(shape, np.float32)
    for knot_mm, weight in ((1.6, 0.75), (4.0, 0.5), (10.0, 0.4)):
        total += np.float32(weight) * smooth_noise(rng, shape, max(knot_mm / spacing, 1.01))
    return total
