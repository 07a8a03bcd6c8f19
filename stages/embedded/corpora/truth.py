"""The phantom slices that the judge and the tiny VLMs learn from, with masks and captions' truth.

A shard holds one subject in two contrasts. Planes are cut and truth is read by the code that
`preprocess` runs on phantoms, so held-out accuracy speaks of the slices that will be read. Two
subjects of three are stripped to the brain, as in `mini.yaml`; the third is a whole head. Subjects
are seeded apart from those of the base models and of the phantom *source*; those that train, those
that choose a threshold and those that tell how good a model is are three different sets.
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
from pipeline.files import write_arrays
from stages.components.imaging.head import prepare_pair
from stages.components.imaging.pixels import GrayImage
from stages.components.imaging.scans import Scan, core_of, read_planes
from stages.components.phantoms.subject import PhantomSubject, build_subject
from stages.components.tumor_report.truth import build_truth
from stages.embedded.corpora.heads import CROP_MARGIN, SEED_BASE
from stages.embedded.corpora.shards import build_shards, read_shard, shard_folder

Split = Literal["train", "val", "test"]
SPLIT_OFFSETS: dict[Split, int] = {"train": 2**36, "val": 2**37, "test": 2**38}
SUBJECTS: dict[Split, int] = {"train": 1248, "val": 96, "test": 96}
PLANES_PER_MODALITY = 8
MODALITIES = (("t1", "flair"), ("t1ce", "t2"))  # of every other round of labels
# Meningiomas most: they grow in many places and are hard to see without contrast agent.
TRAIN_LABELS: tuple[Label, ...] = (
    "meningioma", "notumor", "glioma", "meningioma", "pituitary", "notumor", "meningioma", "glioma",
)  # fmt: skip


@dataclass(frozen=True)
class TruthCorpus:
    """Slices in memory.

    Attributes:
        images: uint8 (n, size, size), prepared as `preprocess` does.
        lesions: bool (n, size, size), the tumour.
        labels: the class of each.
        subjects: the subject of each, and
        stripped: whether nothing but its brain is left, bool (n,).
        reports: the truth of each.
    """

    images: NDArray[np.uint8]
    lesions: NDArray[np.bool_]
    labels: Sequence[Label]
    subjects: Sequence[str]
    stripped: NDArray[np.bool_]
    reports: Sequence[TumorReport]

    def brains(self) -> "TruthCorpus":
        """Return the slices of stripped subjects."""
        kept = [row for row, stripped in enumerate(self.stripped) if stripped]
        return TruthCorpus(
            self.images[kept],
            self.lesions[kept],
            [self.labels[row] for row in kept],
            [self.subjects[row] for row in kept],
            self.stripped[kept],
            [self.reports[row] for row in kept],
        )


@dataclass(frozen=True)
class TruthShard:
    """One shard to make."""

    path: Path
    seed: int
    label: Label
    size: int
    modalities: tuple[str, ...]
    is_stripped: bool


def label_of(split: Split, index: int) -> Label:
    """Give every class its turn; held-out subjects are of all classes alike."""
    labels = TRAIN_LABELS if split == "train" else LABELS
    return labels[index % len(labels)]


def plan(folder: Path, split: Split, num_subjects: int, size: int) -> list[TruthShard]:
    """List the shards of a split, `truth-SIZE-SPLIT-NUMBER-LABEL.npz`."""
    shards = shard_folder(folder)
    first = SEED_BASE + SPLIT_OFFSETS[split]
    return [
        TruthShard(
            shards / f"truth-{size}-{split}-{index:05d}-{label_of(split, index)}.npz",
            first + index,
            label_of(split, index),
            size,
            MODALITIES[index // len(TRAIN_LABELS) % len(MODALITIES)],
            index % 3 != 2,
        )
        for index in range(num_subjects)
    ]


def make_shard(shard: TruthShard) -> None:
    """Write one subject's slices; a shard is whole or absent."""
    subject = build_subject(
        shard.seed, shard.label, modalities=shard.modalities, skull_stripped=shard.is_stripped
    )
    rng = np.random.default_rng([shard.seed % 2**32, 23])
    rows: list[tuple[GrayImage, NDArray[np.bool_], TumorReport]] = []
    with tempfile.TemporaryDirectory() as folder:
        for scan in write_scans(subject, shard.label, Path(folder)):
            for plane in read_planes(scan, PLANES_PER_MODALITY, rng):
                assert plane.mask is not None
                try:
                    image, mask = prepare_pair(plane.image, plane.mask, shard.size, CROP_MARGIN)
                except DataError:  # no head in that plane; preprocess skips it too
                    continue
                truth = build_truth(scan, plane.orientation, image, mask)
                if truth is not None:
                    rows.append((image, core_of(mask), truth))
    write_arrays(
        shard.path,
        images=np.stack([image for image, _, _ in rows]),
        lesions=np.packbits(np.stack([lesion for _, lesion, _ in rows]), axis=-1),
        reports=np.array([truth.model_dump_json() for _, _, truth in rows]),
    )


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
        f"phantoms with truth, {split}",
        workers,
        progress,
    )


def read(folder: Path, split: Split, num_subjects: int, size: int) -> TruthCorpus:
    """Read all shards of a split, in order of their subjects; `build` has made them."""
    images, lesions, stripped = [], [], []
    labels: list[Label] = []
    subjects: list[str] = []
    reports: list[TumorReport] = []
    for index, shard in enumerate(plan(folder, split, num_subjects, size)):
        arrays = read_shard(shard, make_shard)
        images.append(arrays["images"])
        lesions.append(np.unpackbits(arrays["lesions"], axis=-1, count=size).astype(np.bool_))
        truths = [TumorReport.model_validate_json(str(text)) for text in arrays["reports"]]
        reports += truths
        labels += [shard.label] * len(truths)
        subjects += [str(index)] * len(truths)
        stripped.append(np.full(len(truths), shard.is_stripped))
    return TruthCorpus(
        np.concatenate(images),
        np.concatenate(lesions),
        labels,
        subjects,
        np.concatenate(stripped),
        reports,
    )
