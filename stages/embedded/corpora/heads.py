"""The phantom slices that the embedded models are trained on, made once and kept as shards.

A shard holds one subject. Splits (the VAE's, the base models', validation) have seeds of their own.
Those of the wide phase hold every head twice in a row, whole and stripped to the brain.
Subjects of the phantom *source* (`mini.yaml`) are seeded from another range, so nobody who trains
or tests on that source meets a head that an embedded model has seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import write_arrays
from stages.components.imaging.head import crop_to_head
from stages.components.imaging.pixels import pad_to_square, resize, robust_rescale
from stages.components.imaging.scans import AXES, cut_plane
from stages.components.phantoms.subject import LABELS, MODALITIES, build_subject
from stages.components.tumor_report.words import ORIENTATIONS
from stages.embedded.corpora.shards import build_shards, read_shard, shard_folder

SEED_BASE = 2**40  # far from the source's seeds
SPLIT_OFFSETS = {"vae": 0, "base": 2**33, "val": 2**32, "wide": 2**34, "wide_val": 2**35}
CUT_TWICE = ("wide", "wide_val")  # each head whole, and stripped as `mini.yaml` strips it
SLICES_PER_PLANE = 3
FINE_PX = 176  # close to the phantom's own grid: for the VAE's random crops
CROP_MARGIN = 0.04
ISOTROPIC = (1.0, 1.0, 1.0)  # any equal spacing: phantoms need no resampling


@dataclass(frozen=True)
class HeadCorpus:
    """Slices in memory.

    Attributes:
        images: uint8 (n, size, size), prepared exactly as `preprocess` does at `size` px.
        fine: uint8 (n, FINE_PX, FINE_PX), the same slices at about their own resolution.
        label, orientation, modality: int8 (n,), indices into LABELS, ORIENTATIONS, MODALITIES.
        subject: int32 (n,).
    """

    images: NDArray[np.uint8]
    fine: NDArray[np.uint8]
    label: NDArray[np.int8]
    orientation: NDArray[np.int8]
    modality: NDArray[np.int8]
    subject: NDArray[np.int32]


@dataclass(frozen=True)
class HeadShard:
    """One shard to make."""

    path: Path
    seed: int
    label: str
    size: int
    is_stripped: bool | None  # None: drawn


def label_of(split: str, index: int) -> str:
    """Give `vae` a tumour each, `val` one to every second, kinds in turn; the others none."""
    if split not in ("vae", "val") or (split == "val" and index % 2 == 0):
        return LABELS[0]
    return LABELS[1 + (index // 2 if split == "val" else index) % 3]


def head_of(split: str, index: int) -> tuple[int, bool | None]:
    """Return which head of the split a subject has, and whether it is stripped or that is drawn."""
    return (index // 2, index % 2 == 1) if split in CUT_TWICE else (index, None)


def make_shard(shard: HeadShard) -> None:
    """Write one subject's slices; a shard is whole or absent."""
    subject = build_subject(shard.seed, shard.label, skull_stripped=shard.is_stripped)
    rng = np.random.default_rng([shard.seed % 2**32, 17])
    images: list[NDArray[np.uint8]] = []
    fine: list[NDArray[np.uint8]] = []
    orientations: list[int] = []
    modalities: list[int] = []
    shape = subject.mask.shape
    for orientation in ORIENTATIONS:
        for modality, volume in subject.volumes.items():
            scaled = robust_rescale(volume)
            for share in rng.uniform(0.22, 0.88, SLICES_PER_PLANE):
                index = int(share * (shape[AXES[orientation]] - 1))
                image = cut_plane(scaled, None, ISOTROPIC, orientation, index).image
                if (image > 30).mean() < 0.05:  # air
                    continue
                square = pad_to_square(crop_to_head(image, CROP_MARGIN))
                images.append(resize(square, shard.size))
                fine.append(resize(square, FINE_PX))
                orientations.append(ORIENTATIONS.index(orientation))
                modalities.append(MODALITIES.index(modality))
    write_arrays(
        shard.path,
        images=np.stack(images),
        fine=np.stack(fine),
        orientation=np.asarray(orientations, np.int8),
        modality=np.asarray(modalities, np.int8),
        label=np.asarray(LABELS.index(shard.label), np.int8),
    )


def plan(folder: Path, num_subjects: int, split: str, size: int) -> list[HeadShard]:
    """List the shards of a split, `SPLIT-SIZE-NUMBER.npz`."""
    shards = shard_folder(folder)
    first = SEED_BASE + SPLIT_OFFSETS[split]
    orders = []
    for index in range(num_subjects):
        head, is_stripped = head_of(split, index)
        path = shards / f"{split}-{size}-{index:05d}.npz"
        orders.append(HeadShard(path, first + head, label_of(split, index), size, is_stripped))
    return orders


def build(
    folder: Path, num_subjects: int, split: str, size: int, workers: int,
    progress: Callable[[str], None],
) -> None:  # fmt: skip
    """Make the shards of a split that are not there yet, in worker processes."""
    orders = plan(folder, num_subjects, split, size)
    build_shards(orders, make_shard, f"phantoms for {split}", workers, progress)


def read(folder: Path, num_subjects: int, split: str, size: int) -> HeadCorpus:
    """Read all shards of a split, in order of their subjects; `build` has made them."""
    parts: list[dict[str, NDArray[np.generic]]] = []
    for index, shard in enumerate(plan(folder, num_subjects, split, size)):
        arrays = read_shard(shard, make_shard)
        count = len(arrays["images"])
        part = {name: arrays[name] for name in ("images", "fine", "orientation", "modality")}
        part["label"] = np.full(count, arrays["label"], np.int8)
        part["subject"] = np.full(count, index, np.int32)
        parts.append(part)
    return HeadCorpus(**{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
