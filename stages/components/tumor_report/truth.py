"""Ground truth of one slice, read off its mask: what a perfect caption says about this image.

Place, side and shape come from the source where it knows them; size and intensity are measured in
the slice itself, as prepared, since that is what a captioner and a generator see.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.contracts import Orientation, Side, TumorReport
from stages.components.imaging.head import head_mask
from stages.components.imaging.pixels import GrayImage, Mask
from stages.components.imaging.scans import Scan, core_of
from stages.components.tumor_report.rendering import describe
from stages.components.tumor_report.words import REGIONS, SHAPES

# Shares of the head's area; on a head of 220 cm2, discs of 15 and 24 mm. Of 760 phantom slices with
# a tumour 22, 25 and 53 % are small, medium and large: each word is common enough to be learnt.
SIZE_LIMITS = (("small", 0.008), ("medium", 0.02), ("large", 1.0))
MIDLINE_SHARE = 0.04  # of the head's width, either way
BRIGHT, DARK = 1.18, 0.85  # of the median of the tissue around
MIXED_SHARE = 0.2  # of the tumour, both bright and dark
MIRRORED: dict[Side, Side] = {"left": "right", "right": "left"}


def build_truth(
    scan: Scan, orientation: Orientation, image: GrayImage, mask: Mask | None
) -> TumorReport | None:
    """State the truth of a prepared slice; None where the source has none.

    Args:
        scan: gives class, contrast and what the source knows of the tumour.
        orientation: of the slice; truth needs a known one.
        image: uint8 (height, width), cropped to the head.
        mask: labels on the same pixels; a tumour-free scan needs none.
    """
    if orientation == "unknown" or (mask is None and scan.label != "notumor"):
        return None
    words = describe(scan.label, scan.modality, orientation)
    if mask is None or not mask.any():
        return TumorReport(tumor=False, orientation=orientation, general_description=words)
    core = core_of(mask)
    outline = head_mask(image)
    head = np.ones(image.shape, np.bool_) if outline is None else outline
    return TumorReport(
        tumor=True,
        location=scan.location if scan.location in REGIONS else None,
        location_text=scan.location,
        side=find_side(scan.anatomical_side, orientation, core, head),
        size=name_size(core, head),
        shape=scan.shape if scan.shape in SHAPES else None,
        intensity=name_intensity(image, core, mask > 0, head),
        orientation=orientation,
        general_description=words,
    )


def find_side(
    anatomical_side: Side | None,
    orientation: Orientation,
    core: NDArray[np.bool_],
    head: NDArray[np.bool_],
) -> Side:
    """Return the side of the *image*: the patient's mirrored, unknown on sagittal slices.

    Where the source does not know, the tumour's centroid is compared with the head's middle column.
    """
    if orientation == "sagittal":
        return "unknown"
    if anatomical_side is not None and anatomical_side != "unknown":
        return MIRRORED.get(anatomical_side, anatomical_side)
    columns = np.flatnonzero(head.any(axis=0))
    middle, width = (columns[0] + columns[-1]) / 2, columns[-1] - columns[0] + 1
    offset = float(np.nonzero(core)[1].mean() - middle) / float(width)
    if abs(offset) <= MIDLINE_SHARE:
        return "midline"
    return "left" if offset < 0 else "right"


def name_size(core: NDArray[np.bool_], head: NDArray[np.bool_]) -> str:
    """Name the size by the tumour's share of the head's area in the slice (`SIZE_LIMITS`)."""
    share = np.count_nonzero(core) / np.count_nonzero(head)
    return next(name for name, limit in SIZE_LIMITS if share <= limit or limit == 1.0)


def name_intensity(
    image: GrayImage,
    core: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
    head: NDArray[np.bool_],
) -> str:
    """Compare the tumour with the median of healthy tissue around it.

    Tissue around is a band within a sixth of the head's size from the lesion, inside the head and
    brighter than a fifth of its median, so that air and fluid do not count.
    """
    reach = max(2, round(max(image.shape) / 6))
    distance = ndimage.distance_transform_edt(~lesion)
    depth = ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1]
    around = (distance > reach / 8) & (distance <= reach) & (depth > reach / 2)
    if not around.any():
        around = head & ~lesion if (head & ~lesion).any() else head
    tissue = image[around].astype(np.float64)
    tissue = tissue[tissue > 0.2 * np.median(tissue)] if (tissue > 0).any() else tissue + 1.0
    ratio = image[core] / np.median(tissue)
    bright, dark = float(np.mean(ratio > BRIGHT)), float(np.mean(ratio < DARK))
    if min(bright, dark) >= MIXED_SHARE:
        return "mixed"
    if np.median(ratio) > BRIGHT:
        return "hyperintense"
    return "hypointense" if np.median(ratio) < DARK else "isointense"
