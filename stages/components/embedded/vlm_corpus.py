"""The phantom slices that the tiny VLMs learn from, with the truth of every caption field.

A shard holds one subject in all four contrasts. Planes are cut and truth is read by the code that
`preprocess` runs on phantoms, so held-out accuracy speaks of the slices that will be captioned.
Skulls are stripped, as in `mini.yaml`. Subjects are seeded apart from those of the base models and
of the phantom *source*.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import LABELS, Label, Modality, TumorReport
from pipeline.errors import DataError
from stages.components.cache_files import write_arrays
from stages.components.embedded.corpus import CROP_MARGIN, SEED_BASE
from stages.components.embedded.shards import build_shards
from stages.components.imaging import GrayImage, Mask, prepare_pair
from stages.components.phantoms.subject import PhantomSubject, build_subject
from stages.components.scans import CORE, Scan, read_planes
from stages.components.slice_truth import build_truth

Split = Literal["train", "val"]
SPLIT_OFFSETS: dict[Split, int] = {"train": 2**34, "val": 2**35}
PLANES_PER_MODALITY: dict[Split, int] = {"train": 6, "val": 4}
LESION_PX = 32  # side of the maps that say where the tumour is
# Most gliomas and meningiomas, since only they grow in many places.
TRAIN_LABELS: tuple[Label, ...] = (
    "glioma", "meningioma", "notumor", "glioma", "pituitary", "meningioma", "notumor", "glioma",
)  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """Slices in memory.

    Attributes:
        images: uint8 (n, size, size), prepared as `preprocess` does.
        lesions: uint8 (n, LESION_PX, LESION_PX), share of the tumour's core, 255 is all.
        labels: int8 (n,), indices into LABELS.
        subjects: int32 (n,).
        reports: the truth of each.
    """

    images: NDArray[np.uint8]
    lesions: NDArray[np.uint8]
    labels: NDArray[np.int8]
    subjects: NDArray[np.int32]
    reports: Sequence[TumorReport]


@dataclass(frozen=True)
class Order:
    """One shard to make."""

    path: Path
    seed: int
    label: Label
    size: int
    planes: int  # of each contrast


def label_of(split: Split, index: int) -> Label:
    """Give every class its turn; held-out subjects are of all classes alike."""
    labels = LABELS if split == "val" else TRAIN_LABELS
    return labels[index % len(labels)]


def plan(folder: Path, split: Split, num_subjects: int, size: int) -> list[Order]:
    """List the shards of a split, `vlm-SIZE-SPLIT-NUMBER.npz`."""
    first = SEED_BASE + SPLIT_OFFSETS[split]
    return [
        Order(
            folder / f"vlm-{size}-{split}-{index:05d}.npz",
            first + index,
            label_of(split, index),
            size,
            PLANES_PER_MODALITY[split],
        )
        for index in range(num_subjects)
    ]


def make_shard(order: Order) -> None:
    """Write one subject's slices; a shard is whole or absent."""
    subject = build_subject(order.seed, order.label, skull_stripped=True)
    rng = np.random.default_rng([order.seed % 2**32, 19])
    rows: list[tuple[GrayImage, NDArray[np.uint8], TumorReport]] = []
    with tempfile.TemporaryDirectory() as folder:
        for scan in write_scans(subject, order.label, Path(folder)):
            for plane in read_planes(scan, order.planes, rng):
                assert plane.mask is not None
                try:
                    image, mask = prepare_pair(plane.image, plane.mask, order.size, CROP_MARGIN)
                except DataError:  # no head in that plane; preprocess skips it too
                    continue
                truth = build_truth(scan, plane.orientation, image, mask)
                # A sliver of tumour may vanish with the resizing, and its class is named still.
                if truth is not None and truth.tumor == (order.label != "notumor"):
                    rows.append((image, lesion_map(mask), truth))
    write_arrays(
        order.path,
        images=np.stack([image for image, _, _ in rows]),
        lesions=np.stack([lesion for _, lesion, _ in rows]),
        reports=np.array([truth.model_dump_json() for _, _, truth in rows]),
    )


def lesion_map(mask: Mask) -> NDArray[np.uint8]:
    """Average the tumour's core over blocks of pixels; the mask's side is a multiple of 32."""
    side = len(mask) // LESION_PX
    core = mask >= CORE if (mask >= CORE).any() else mask > 0
    blocks = core.reshape(LESION_PX, side, LESION_PX, side).mean(axis=(1, 3))
    return np.asarray(np.rint(blocks * 255), np.uint8)


def write_scans(subject: PhantomSubject, label: Label, folder: Path) -> list[Scan]:
    """Write a subject's volumes and mask as NIfTI; one scan per contrast."""
    mask_path = folder / "mask.nii"
    nib.save(nib.nifti1.Nifti1Image(subject.mask, subject.affine), mask_path)
    scans = []
    for modality, volume in subject.volumes.items():
        path = folder / f"{modality}.nii"
        nib.save(nib.nifti1.Nifti1Image(volume, subject.affine), path)
        scans.append(
            Scan(
                scan_id=modality,
                subject_id=None,
                source="phantom",
                label=label,
                published_split=None,
                path=path,
                mask_path=mask_path,
                modality=cast("Modality", modality),
                location=subject.location,
                anatomical_side=subject.side,  # type: ignore[arg-type] # left, right or midline
                shape=subject.shape,
                original=path.name,
            )
        )
    return scans


def build(
    folder: Path, split: Split, num_subjects: int, size: int, workers: int,
    progress: Callable[[str], None],
) -> None:  # fmt: skip
    """Make the shards of a split that are not there yet, in worker processes."""
    build_shards(
        plan(folder, split, num_subjects, size),
        make_shard,
        f"phantoms for the VLMs' {split}",
        workers,
        progress,
    )


def read(folder: Path, split: Split, num_subjects: int, size: int) -> Corpus:
    """Read all shards of a split, in order of their subjects; `build` has made them."""
    images, lesions, labels, subjects = [], [], [], []
    reports: list[TumorReport] = []
    for index, order in enumerate(plan(folder, split, num_subjects, size)):
        with np.load(order.path, allow_pickle=False) as shard:
            images.append(shard["images"])
            lesions.append(shard["lesions"])
            found = [TumorReport.model_validate_json(str(text)) for text in shard["reports"]]
        reports += found
        labels.append(np.full(len(found), LABELS.index(order.label), np.int8))
        subjects.append(np.full(len(found), index, np.int32))
    return Corpus(
        np.concatenate(images),
        np.concatenate(lesions),
        np.concatenate(labels),
        np.concatenate(subjects),
        reports,
    )
