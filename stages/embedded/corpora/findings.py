"""Phantom slices with a finding that is no tumour, worded like captions of tumours.

A base model that saw healthy heads alone knows no place, side, size or shape, and Stable Diffusion
does: a LoRA would have to teach the words and the tumour at once. A shard holds one head with
several findings, one after the other. Those of the wide phase are whole and stripped in turn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Modality, Orientation, Side, TumorReport
from pipeline.errors import DataError
from pipeline.files import write_arrays
from stages.components.imaging.head import head_mask, prepare_pair
from stages.components.imaging.pixels import GrayImage, robust_rescale
from stages.components.imaging.scans import AXES, cut_plane
from stages.components.phantoms.findings import Finding, build_findings
from stages.components.tumor_report.rendering import describe
from stages.components.tumor_report.truth import find_side, name_intensity, name_size
from stages.components.tumor_report.words import ORIENTATIONS, REGIONS
from stages.embedded.corpora.heads import CROP_MARGIN, ISOTROPIC, SEED_BASE
from stages.embedded.corpora.shards import build_shards, read_shard, shard_folder

SPLIT_OFFSETS = {"findings": 2**39, "wide_findings": 2**39 + 2**34}
FINDINGS_EACH = 8
MIN_PIXELS = 12  # of a finding in the prepared slice


@dataclass(frozen=True)
class FindingCorpus:
    """Slices in memory.

    Attributes:
        images: uint8 (n, size, size), prepared as `preprocess` does.
        findings: bool (n, size, size), where the finding is.
        names: what it is, e.g. "cyst".
        reports: what a caption states of each; `tumor` is False.
    """

    images: NDArray[np.uint8]
    findings: NDArray[np.bool_]
    names: list[str]
    reports: list[TumorReport]


@dataclass(frozen=True)
class FindingShard:
    """One shard to make."""

    path: Path
    seed: int
    size: int
    is_stripped: bool | None  # None: drawn


def plan(folder: Path, num_subjects: int, split: str, size: int) -> list[FindingShard]:
    """List the shards of a split, `SPLIT-SIZE-NUMBER.npz`."""
    shards = shard_folder(folder)
    first = SEED_BASE + SPLIT_OFFSETS[split]
    return [
        FindingShard(
            shards / f"{split}-{size}-{index:05d}.npz",
            first + index,
            size,
            index % 2 == 1 if split == "wide_findings" else None,
        )
        for index in range(num_subjects)
    ]


def make_shard(shard: FindingShard) -> None:
    """Write one head's slices; a shard is whole or absent."""
    rng = np.random.default_rng([shard.seed % 2**32, 29])
    rows = [
        row
        for finding in build_findings(shard.seed, FINDINGS_EACH, skull_stripped=shard.is_stripped)
        for row in cut_finding(finding, shard.size, rng)
    ]
    write_arrays(
        shard.path,
        images=np.stack([image for image, _, _, _ in rows]),
        findings=np.packbits(np.stack([inside for _, inside, _, _ in rows]), axis=-1),
        names=np.array([name for _, _, name, _ in rows]),
        reports=np.array([report.model_dump_json() for _, _, _, report in rows]),
    )


def cut_finding(
    finding: Finding, size: int, rng: np.random.Generator
) -> list[tuple[GrayImage, NDArray[np.bool_], str, TumorReport]]:
    """Cut one slice per contrast and plane through a finding, and say what is on it."""
    rows = []
    for modality, volume in finding.volumes.items():
        scaled = robust_rescale(volume)
        for orientation in ORIENTATIONS:
            others = tuple(axis for axis in range(3) if axis != AXES[orientation])
            area = (finding.mask > 0).sum(axis=others)
            index = int(rng.choice(np.flatnonzero(area >= 0.3 * area.max())))
            plane = cut_plane(scaled, finding.mask, ISOTROPIC, orientation, index)
            assert plane.mask is not None
            try:
                image, mask = prepare_pair(plane.image, plane.mask, size, CROP_MARGIN)
            except DataError:  # no head in that plane
                continue
            inside = mask > 0
            if np.count_nonzero(inside) >= MIN_PIXELS:
                report = state(finding, cast("Modality", modality), orientation, image, inside)
                rows.append((image, inside, finding.name, report))
    return rows


def state(
    finding: Finding,
    modality: Modality,
    orientation: Orientation,
    image: GrayImage,
    inside: NDArray[np.bool_],
) -> TumorReport:
    """State what is on a slice, in the words that the caption stage has for tumours."""
    mask = head_mask(image)
    head = np.ones(image.shape, np.bool_) if mask is None else mask
    article = "an" if finding.name[0] in "aeiou" else "a"
    words = describe("notumor", modality, orientation).removesuffix("without a tumor")
    return TumorReport(
        tumor=False,
        location=finding.location if finding.location in REGIONS else None,
        location_text=finding.location,
        side=find_side(cast("Side", finding.side), orientation, inside, head),
        size=name_size(inside, head),
        shape=finding.shape,
        intensity=name_intensity(image, inside, inside, head),
        orientation=orientation,
        general_description=f"{words}with {article} {finding.name}",
    )


def build(
    folder: Path, num_subjects: int, split: str, size: int, workers: int,
    progress: Callable[[str], None],
) -> None:  # fmt: skip
    """Make the shards of a split that are not there yet, in worker processes."""
    orders = plan(folder, num_subjects, split, size)
    build_shards(orders, make_shard, f"phantoms for {split}", workers, progress)


def read(folder: Path, num_subjects: int, split: str, size: int) -> FindingCorpus:
    """Read all shards of a split, in order of their heads; `build` has made them."""
    images, findings = [], []
    names: list[str] = []
    reports: list[TumorReport] = []
    for shard in plan(folder, num_subjects, split, size):
        arrays = read_shard(shard, make_shard)
        images.append(arrays["images"])
        findings.append(np.unpackbits(arrays["findings"], axis=-1, count=size).astype(np.bool_))
        names += [str(name) for name in arrays["names"]]
        reports += [TumorReport.model_validate_json(str(text)) for text in arrays["reports"]]
    return FindingCorpus(np.concatenate(images), np.concatenate(findings), names, reports)
