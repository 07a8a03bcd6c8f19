"""Readings: what the judge marks, put as a caption would put it, field by field.

Size and intensity are taken from the marked patch by the very functions that take them from true
masks (`tumor_report.truth`); it marks no oedema, which truth leaves out of the tissue that a
tumour's intensity is compared with. Region, shape and, on phantoms, side are known from how a
tumour was grown in three dimensions, which one plane does not show, so the judge learned to name
them from what it sees under the patch. By the centroid of true masks (`truth.find_side`) the side
of 470 phantom slices comes out right in 93 %: tumours of the falx lie beside the middle, not on it.
What the judge still gets wrong is part of its own error on real slices.

Every slice is read together with its mirror image: what the judge has learned of one side then
holds for the other, and a mirrored slice gets the mirrored answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline.contracts import Orientation, TumorReport
from pipeline.errors import DataError
from stages.components.features.extraction import in_batches
from stages.components.imaging.head import head_mask
from stages.components.imaging.pixels import GrayImage, resize_mask
from stages.components.imaging.scans import core_of
from stages.components.tumor_report.truth import name_intensity, name_size
from stages.components.tumor_report.words import ORIENTATIONS

if TYPE_CHECKING:
    from stages.components.judge.network import Judge, Named

BATCH = 32  # slices judged at once, whatever the settings say, so that no setting moves a score
TOUCHING = np.ones((3, 3))  # pixels that meet at a corner are of one patch


@dataclass(frozen=True)
class Reading:
    """What the judge finds in one slice.

    Attributes:
        report: presence, orientation and, with a tumour, side, region, size, shape, intensity.
        patch: bool (h, w), the tumour; nothing where there is none.
        confidence: that there is a tumour, in [0, 1]; the mean over the surest pixels.
        place: row and column of the middle of what is surest to be a tumour, as shares of the
            sides, whether there is one or not.
    """

    report: TumorReport
    patch: NDArray[np.bool_]
    confidence: float
    place: tuple[float, float]


def read_core(path: Path | None, size: int) -> NDArray[np.bool_]:
    """Read a mask file as a tumour, bool (size, size); without a file there is none.

    Raises:
        DataError: The file cannot be read.
    """
    if path is None:
        return np.zeros((size, size), np.bool_)
    try:
        with Image.open(path) as opened:
            mask = np.asarray(opened.convert("L"), dtype=np.uint8)
    except OSError as error:
        raise DataError(
            f"mask {str(path)!r} cannot be read ({error}); run preprocess again"
        ) from error
    return resize_mask(core_of(mask).astype(np.uint8), size) > 0


def largest_patch(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest connected patch of (h, w); the first of equals."""
    patches, count = ndimage.label(marked, TOUCHING)
    if count == 0:
        return marked
    areas = np.bincount(patches.ravel())
    areas[0] = 0
    kept: NDArray[np.bool_] = patches == int(areas.argmax())
    return kept


def read_images(judge: "Judge", images: Iterable[GrayImage]) -> list[Reading]:
    """Judge slices, uint8 (h, w) of one size, a multiple of 16 px; a batch of them is in memory.

    Raises:
        ValueRangeError: Of another size.
    """
    readings: list[Reading] = []
    for batch in in_batches(images, BATCH):
        readings += _read_batch(judge, batch)
    return readings


def _read_batch(judge: "Judge", images: Sequence[GrayImage]) -> list[Reading]:
    import torch

    from stages.components.judge.network import peak_logit

    pixels = torch.from_numpy(np.stack(images)).to(judge.device).float() / 127.5 - 1
    with torch.inference_mode():
        shown = pixels[:, None].expand(-1, 3, -1, -1)
        seen, mirrored = judge.look(shown), judge.look(shown.flip(-1))
        lesion = (seen.lesion + mirrored.lesion.flip(-1)) / 2
        peak = peak_logit(lesion)
        # A tumour that no pixel is sure of lies where the surest are.
        marked = lesion[:, 0] >= peak.clamp(max=0)[:, None, None]
        patches = np.stack([largest_patch(m) for m in marked.cpu().numpy()])
        under = torch.from_numpy(patches[:, None].astype(np.float32)).to(judge.device)
        names = judge.name(seen, mirrored, under)
        planes = (seen.orientation + mirrored.orientation).argmax(dim=1).tolist()
    return [
        describe(image, patch, ORIENTATIONS[plane], named, sure, judge.config.least_confidence)
        for image, patch, plane, named, sure in zip(
            images, patches, planes, names, peak.sigmoid().tolist(), strict=True
        )
    ]


def describe(
    image: GrayImage,
    patch: NDArray[np.bool_],
    orientation: Orientation,
    named: "Named",
    confidence: float,
    least_confidence: float,
) -> Reading:
    """Word a marked patch (h, w), not empty, as truth words a mask; less sure than that: no tumour.

    As in the truth, sagittal slices have no side.
    """
    rows, columns = np.nonzero(patch)
    place = (
        float(rows.mean() + 0.5) / patch.shape[0],
        float(columns.mean() + 0.5) / patch.shape[1],
    )
    if confidence < least_confidence:
        report = TumorReport(tumor=False, orientation=orientation)
        return Reading(report, np.zeros_like(patch), confidence, place)
    mask = head_mask(image)
    head = np.ones(image.shape, np.bool_) if mask is None else mask
    report = TumorReport(
        tumor=True,
        location=named.region,
        side="unknown" if orientation == "sagittal" else named.side,
        size=name_size(patch, head),
        shape=named.shape,
        intensity=name_intensity(image, patch, patch, head),
        orientation=orientation,
    )
    return Reading(report, patch, confidence, place)


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the overlap of two masks, 2 |A and B| / (|A| + |B|); 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0
