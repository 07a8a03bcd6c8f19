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
from stages.components.scans import AXES, cut_plane
from stages.components.tumor_report import ORIENTATIONS

SEED_BASE = 2**40  # far from the source's seeds
SPLIT_OFFSETS = {"vae": 0, "base": 2**33, "val": 2**32}
SLICES_PER_PLANE = 3
FINE_PX = 176  # close to the phantom's own grid: for the VAE's random crops
CROP_MARGIN = 0.04
ISOTROPIC = (1.0, 1.0, 1.0)  # any equal spacing: phantoms need no resampling


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


def label_of(split: str, index: int) -> str:
    """Give `base` none, `vae` a tumour each, `val` one to every second; kinds in turn."""
    if split == "base" or (split == "val" and index % 2 == 0):
        return LABELS[0]
    return LABELS[1 + (index // 2 if split == "val" else index) % 3]


def make_shard(path: Path, seed: int, label: str, size: int) -> None:
    """Write one subject's slices; a shard is whole or absent."""
    subject = build_subject(seed, label)
    rng = np.random.default_rng([seed % 2**32, 17])
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
                images.append(resize(square, size))
                fine.append(resize(square, FINE_PX))
                orientations.append(ORIENTATIONS.index(orientation))
                modalities.append(MODALITIES.index(modality))
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as out:
        np.savez(
            out,
            images=np.stack(images),
            fine=np.stack(fine),
            orientation=np.asarray(orientations, np.int8),
            modality=np.asarray(modalities, np.int8),
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
    """Read all shards of a split, in order of their subjects; `build` has made them."""
    parts: list[dict[str, NDArray[np.generic]]] = []
    for index, (path, *_rest) in enumerate(shard_plan(folder, num_subjects, split, size)):
        with np.load(path, allow_pickle=False) as shard:
            count = len(shard["images"])
            part = {name: shard[name] for name in ("images", "fine", "orientation", "modality")}
            part["label"] = np.full(count, shard["label"], np.int8)
            part["subject"] = np.full(count, index, np.int32)
            parts.append(part)
    return Corpus(**{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
