"""The phantom slices that the embedded models are trained on, made once and kept as shards.

A shard holds one subject. Splits (the VAE's, the base models', validation) have seeds of their own.
Subjects of the phantom *source* (`mini.yaml`) are seeded from another range, so nobody who trains
or tests on that source meets a head that an embedded model has seen.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.components.imaging import crop_to_head, pad_to_square, resize, robust_rescale
from stages.components.phantoms.subject import LABELS, MODALITIES, build_subject

SEED_BASE = 2**40  # far from the source's seeds
SPLIT_OFFSETS = {"vae": 0, "base": 2**33, "val": 2**32}
ORIENTATIONS = ("axial", "coronal", "sagittal")
SLICES_PER_PLANE = 3
FINE_PX = 176  # close to the phantom's own grid: for the VAE's random crops
CROP_MARGIN = 0.04


@dataclass(frozen=True)
class Corpus:
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

    def only(self, keep: NDArray[np.bool_]) -> "Corpus":
        """Return the slices where `keep` (n,) is True."""
        return Corpus(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


def label_of(split: str, index: int) -> str:
    """Give base models no tumour at all; else every second subject none, the rest in turn."""
    if split == "base" or index % 2 == 0:
        return LABELS[0]
    return LABELS[1 + (index // 2) % 3]


def plane(volume: NDArray[np.uint8], orientation: str, position: int) -> NDArray[np.uint8]:
    """Cut (i, j, k) RAS into an image (row, column) as radiologists hang it.

    Axial and coronal: the image's left is the patient's right. Sagittal: anterior on the left.
    """
    if orientation == "axial":
        return volume[::-1, ::-1, position].T
    if orientation == "coronal":
        return volume[::-1, position, ::-1].T
    return volume[position, ::-1, ::-1].T


def make_shard(path: Path, seed: int, label: str, size: int) -> None:
    """Write one subject's slices; a shard is whole or absent."""
    subject = build_subject(seed, label)
    rng = np.random.default_rng([seed % 2**32, 17])
    rows: dict[str, list[object]] = {
        "images": [], "fine": [], "orientation": [], "modality": [],
    }  # fmt: skip
    shape = subject.mask.shape
    for axis, orientation in ((2, "axial"), (1, "coronal"), (0, "sagittal")):
        for modality, volume in subject.volumes.items():
            scaled = robust_rescale(volume)
            for share in rng.uniform(0.22, 0.88, SLICES_PER_PLANE):
                image = plane(scaled, orientation, int(share * (shape[axis] - 1)))
                if (image > 30).mean() < 0.05:  # air
                    continue
                square = pad_to_square(crop_to_head(np.ascontiguousarray(image), CROP_MARGIN))
                rows["images"].append(resize(square, size))
                rows["fine"].append(resize(square, FINE_PX))
                rows["orientation"].append(ORIENTATIONS.index(orientation))
                rows["modality"].append(MODALITIES.index(modality))
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as out:
        np.savez(
            out,
            images=np.stack(rows["images"]).astype(np.uint8),  # type: ignore[arg-type]
            fine=np.stack(rows["fine"]).astype(np.uint8),  # type: ignore[arg-type]
            orientation=np.asarray(rows["orientation"], np.int8),
            modality=np.asarray(rows["modality"], np.int8),
            label=np.int8(LABELS.index(label)),
        )
    temporary.replace(path)


def shard_plan(
    folder: Path, num_subjects: int, split: str, size: int
) -> list[tuple[Path, int, str, int]]:
    """List the shards of a split: path, seed, label and image size."""
    offset = SEED_BASE + SPLIT_OFFSETS[split]
    return [
        (folder / f"{split}-{size}-{index:05d}.npz", offset + index, label_of(split, index), size)
        for index in range(num_subjects)
    ]


def build(
    folder: Path, num_subjects: int, split: str, size: int, workers: int,
    progress: Callable[[str], None],
) -> None:  # fmt: skip
    """Make the shards of a split that are not there yet, in worker processes."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = [row for row in shard_plan(folder, num_subjects, split, size) if not row[0].exists()]
    with ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(make_shard, *zip(*todo, strict=True)) if todo else (), 1):
            if done % 10 == 0 or done == len(todo):
                progress(f"phantoms for {split}: {done} of {len(todo)} subjects")


def read(folder: Path, num_subjects: int, split: str, size: int) -> Corpus:
    """Read the shards of a split that exist, in order of their subjects."""
    parts: list[dict[str, NDArray[np.generic]]] = []
    for index, (path, *_rest) in enumerate(shard_plan(folder, num_subjects, split, size)):
        if path.exists():
            with np.load(path, allow_pickle=False) as shard:
                count = len(shard["images"])
                part = {name: shard[name] for name in ("images", "fine", "orientation", "modality")}
                part["label"] = np.full(count, shard["label"], np.int8)
                part["subject"] = np.full(count, index, np.int32)
                parts.append(part)
    return Corpus(**{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
