"""Scans, and the 2-D planes that are cut from them.

Volumes are brought to the canonical RAS orientation first and shown as radiologists hang them:
axial with anterior up and coronal with the top up, both with the patient's right on the image's
left; sagittal with the top up and anterior on the left.

Where a plane is cut must not give the class away. Planes of a scan with a tumour show it; those of
a tumour-free scan lie where the tumours of a class drawn at random would have been.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from pipeline.contracts import Label, Modality, Orientation, Side, Split
from pipeline.errors import DataError
from stages.components.imaging.head import Box, head_box
from stages.components.imaging.pixels import (
    GrayImage,
    Mask,
    Volume,
    read_image,
    resize,
    resize_mask,
    robust_rescale,
)

VOLUME_SUFFIXES = (".nii", ".nii.gz")
AXES: dict[Orientation, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
MIN_VOXELS = 16  # along each axis
MAX_PIXEL_ASPECT = 4.0  # thicker slices are not reformatted across
HEAD_HEIGHT_MM = 180.0  # from the vertex: what lies below is neck, and depends on the field of view
MIN_TUMOR_SHARE = 0.002  # of the head's box in the plane; less is hard to see
MIN_PEAK_SHARE = 0.3  # of the tumour's largest cross-section along the axis
CORE = 2  # mask values from here on are tumour; below is oedema
NUM_DRAWS = 8  # positions to choose among, since some may be too close to earlier planes
MIN_GAP_MM = 4.0  # between planes of one scan, as far as there are enough

# Deciles (0, 10, .. 100 %) of the positions of planes that show a tumour, as shares of the head's
# extent: sagittal from the patient's left, coronal from the back, axial from HEAD_HEIGHT_MM below
# the vertex upwards. Measured on 90 phantoms of each class; sagittal made symmetric.
DEPTHS: dict[Label, dict[Orientation, tuple[float, ...]]] = {
    "glioma": {
        "sagittal": (0.09, 0.24, 0.30, 0.34, 0.40, 0.50, 0.60, 0.66, 0.70, 0.76, 0.91),
        "coronal": (0.10, 0.23, 0.28, 0.33, 0.38, 0.43, 0.48, 0.53, 0.56, 0.65, 0.89),
        "axial": (0.18, 0.32, 0.41, 0.46, 0.49, 0.54, 0.58, 0.62, 0.67, 0.71, 0.89),
    },
    "meningioma": {
        "sagittal": (0.09, 0.24, 0.32, 0.38, 0.43, 0.50, 0.57, 0.62, 0.68, 0.76, 0.91),
        "coronal": (0.09, 0.20, 0.26, 0.32, 0.36, 0.39, 0.47, 0.57, 0.66, 0.76, 0.94),
        "axial": (0.12, 0.31, 0.38, 0.47, 0.57, 0.65, 0.70, 0.74, 0.78, 0.81, 0.92),
    },
    "pituitary": {
        "sagittal": (0.34, 0.46, 0.48, 0.49, 0.49, 0.50, 0.51, 0.51, 0.52, 0.54, 0.66),
        "coronal": (0.47, 0.51, 0.52, 0.53, 0.53, 0.54, 0.55, 0.56, 0.57, 0.58, 0.67),
        "axial": (0.18, 0.26, 0.28, 0.29, 0.30, 0.31, 0.32, 0.33, 0.34, 0.37, 0.46),
    },
}


@dataclass(frozen=True)
class Scan:
    """One acquisition as a source hands it over: a 2-D image file or a NIfTI volume.

    Attributes:
        scan_id: unique within the source; letters, digits, `.`, `_` and `-`.
        subject_id: the person, or None where the source names none.
        source: the source's file name.
        label: class of the scan.
        published_split: the split its publisher put it in, or None.
        path: image file or volume.
        mask_path: NIfTI labels on the volume's grid, or None.
        modality: MR contrast.
        location: region of the tumour in words of `tumor_report.REGIONS`, or None.
        anatomical_side: side of the *patient*, or None.
        shape: shape of the tumour in words of `tumor_report.SHAPES`, or None.
        original: the file's name relative to the source's root, with forward slashes.
    """

    scan_id: str
    subject_id: str | None
    source: str
    label: Label
    published_split: Split | None
    path: Path
    mask_path: Path | None
    modality: Modality
    location: str | None
    anatomical_side: Side | None
    shape: str | None
    original: str

    @property
    def is_volume(self) -> bool:
        """Whether the file is a NIfTI volume, judged by its name."""
        return self.path.name.lower().endswith(VOLUME_SUFFIXES)


@dataclass(frozen=True)
class Plane:
    """One 2-D plane with square pixels, before it is cropped to the head."""

    image: GrayImage
    mask: Mask | None
    orientation: Orientation
    index: int  # voxel index along the axis in RAS; 0 for image files


@dataclass(frozen=True)
class _Head:
    """A volume ready for slicing: uint8 (i, j, k) RAS, spacing in mm, the head's voxel extents."""

    volume: NDArray[np.uint8]
    mask: Mask | None
    spacing_mm: tuple[float, float, float]
    extent: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # half-open, per axis


def read_planes(scan: Scan, slices_per_scan: int, rng: np.random.Generator) -> list[Plane]:
    """Read an image file as one plane, or cut up to `slices_per_scan` planes from a volume.

    Orientations take turns from a random start, whatever the class; `rng` also draws positions.
    A volume with fewer distinct planes that show its tumour yields fewer.

    Raises:
        DataError: The file cannot be read or used; the message says why.
    """
    if not scan.is_volume:
        return [Plane(read_image(scan.path), None, "unknown", 0)]
    head = _read_head(scan)
    allowed = [name for name in AXES if _pixel_aspect(head, name) <= MAX_PIXEL_ASPECT]
    allowed = allowed or [min(AXES, key=lambda name: _pixel_aspect(head, name))]
    turns = itertools.cycle([allowed[int(i)] for i in rng.permutation(len(allowed))])
    planes: list[Plane] = []
    used: dict[Orientation, list[int]] = {name: [] for name in allowed}
    for orientation in itertools.islice(turns, slices_per_scan):
        index = _choose_index(head, scan.label, orientation, used[orientation], rng)
        if index is not None:
            used[orientation].append(index)
            planes.append(cut_plane(head.volume, head.mask, head.spacing_mm, orientation, index))
    return planes


def cut_plane(
    volume: NDArray[np.uint8],
    mask: Mask | None,
    spacing_mm: tuple[float, float, float],
    orientation: Orientation,
    index: int,
) -> Plane:
    """Cut a plane from a RAS volume (i, j, k), hang it, and make its pixels square.

    Pixels take the finer of the two spacings; labels are resampled by nearest neighbour.
    """
    axis = AXES[orientation]
    across, up = [a for a in range(3) if a != axis]  # image columns, image rows
    fine = min(spacing_mm[across], spacing_mm[up])

    def hang(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        # Up is anterior or superior; columns run from the patient's right, or from anterior.
        return np.ascontiguousarray(np.moveaxis(values, axis, 0)[index][::-1, ::-1].T)

    image = hang(volume)
    size = (
        max(1, round(image.shape[0] * spacing_mm[up] / fine)),
        max(1, round(image.shape[1] * spacing_mm[across] / fine)),
    )
    labels = None if mask is None else resize_mask(hang(mask), size)
    return Plane(resize(image, size), labels, orientation, index)


def read_volume(path: Path) -> tuple[Volume, tuple[float, float, float], NDArray[np.float64]]:
    """Read a NIfTI file as float32 (i, j, k) in RAS, its spacing in mm and its affine.

    A trailing axis of length one is dropped.

    Raises:
        DataError: Unreadable, not three-dimensional, too few voxels, NaN, or an unusable affine.
    """
    try:
        opened = nib.load(path)
        if not isinstance(opened, nib.nifti1.Nifti1Image):
            raise DataError(f"volume {str(path)!r} is {type(opened).__name__}, not NIfTI")
        affine = np.asarray(opened.affine, dtype=np.float64)
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise DataError(
                f"volume {str(path)!r} has an affine that cannot be inverted; repair it"
            )
        # Squeezed before it is turned: nibabel orients the first three axes only.
        canonical = nib.funcs.as_closest_canonical(nib.funcs.squeeze_image(opened))
        values = np.asarray(canonical.dataobj, dtype=np.float32)
    except FileNotFoundError as error:
        raise DataError(f"volume {str(path)!r} does not exist; check the source's root") from error
    except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise DataError(
            f"volume {str(path)!r} cannot be read ({error}); replace or remove the file"
        ) from error
    if values.ndim != 3 or min(values.shape) < MIN_VOXELS:
        raise DataError(
            f"volume {str(path)!r} has shape {values.shape}; expected three axes of at least "
            f"{MIN_VOXELS} voxels"
        )
    if not np.isfinite(values).all():
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise DataError(f"volume {str(path)!r} holds {count} NaN or infinite voxels")
    spacing = np.sqrt((canonical.affine[:3, :3] ** 2).sum(axis=0))
    assert aff2axcodes(canonical.affine) == ("R", "A", "S")
    return values, (float(spacing[0]), float(spacing[1]), float(spacing[2])), canonical.affine


def core_of(mask: Mask) -> NDArray[np.bool_]:
    """Return the tumour of true labels, of any shape: its core, or all of it where none is seen."""
    return mask >= CORE if (mask >= CORE).any() else mask > 0


def _read_head(scan: Scan) -> _Head:
    values, spacing_mm, affine = read_volume(scan.path)
    try:
        volume = robust_rescale(values)
        extent = head_extent(volume, spacing_mm)
    except DataError as error:
        raise DataError(f"volume {str(scan.path)!r}: {error}") from error
    mask: Mask | None = None
    if scan.mask_path is not None:
        labels, _, mask_affine = read_volume(scan.mask_path)
        if labels.shape != volume.shape or not np.allclose(mask_affine, affine, atol=1e-2):
            raise DataError(
                f"mask {str(scan.mask_path)!r} {labels.shape} does not lie on the grid of its "
                f"volume {volume.shape}; resample it"
            )
        mask = labels.astype(np.uint8)
        if scan.label != "notumor" and not mask.any():
            raise DataError(
                f"mask {str(scan.mask_path)!r} is empty, but its label is {scan.label!r}"
            )
    return _Head(volume, mask, spacing_mm, extent)


def head_extent(
    volume: NDArray[np.uint8], spacing_mm: tuple[float, float, float]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return the head's half-open voxel range along i, j and k, the neck left out.

    Found on two maximum projections of a RAS volume.

    Raises:
        DataError: No head is found.
    """
    side: Box = head_box(np.ascontiguousarray(volume.max(axis=0)))  # rows j, columns k
    front: Box = head_box(np.ascontiguousarray(volume.max(axis=1)))  # rows i, columns k
    top = max(side.right, front.right)
    bottom = max(min(side.left, front.left), top - round(HEAD_HEIGHT_MM / spacing_mm[2]))
    return (front.top, front.bottom), (side.top, side.bottom), (bottom, top)


def _pixel_aspect(head: _Head, orientation: Orientation) -> float:
    first, second = (s for a, s in enumerate(head.spacing_mm) if a != AXES[orientation])
    return max(first, second) / min(first, second)


def _choose_index(
    head: _Head,
    label: Label,
    orientation: Orientation,
    used: list[int],
    rng: np.random.Generator,
) -> int | None:
    """Draw a plane that was not used yet, or None when there is none left."""
    axis = AXES[orientation]
    low, high = head.extent[axis]
    gap = MIN_GAP_MM / head.spacing_mm[axis]
    if label != "notumor" and head.mask is not None:
        candidates = _tumor_indices(head, axis)
    else:
        names = sorted(DEPTHS)
        lesion = names[int(rng.integers(len(names)))] if label == "notumor" else label
        deciles = DEPTHS[lesion][orientation]
        # Without the tails: next to no tumour there, and no brain either in some heads.
        wanted = rng.uniform(0.05, 0.95, NUM_DRAWS)
        shares = np.interp(wanted, np.linspace(0, 1, len(deciles)), deciles)
        candidates = np.clip((low + shares * (high - low)).astype(int), low, high - 1)
    for distance in (gap, 1.0):
        far = [c for c in candidates if all(abs(int(c) - u) >= distance for u in used)]
        if far:
            return int(far[int(rng.integers(len(far)))])
    return None


def _tumor_indices(head: _Head, axis: int) -> NDArray[np.intp]:
    """List the planes along an axis on which the tumour is large enough to be seen."""
    assert head.mask is not None
    core = core_of(head.mask)
    others = tuple(a for a in range(3) if a != axis)
    areas = np.count_nonzero(core, axis=others)
    box = float(np.prod([head.extent[a][1] - head.extent[a][0] for a in others]))
    wanted = max(MIN_PEAK_SHARE * float(areas.max()), MIN_TUMOR_SHARE * box)
    return np.flatnonzero(areas >= min(wanted, float(areas.max())))
