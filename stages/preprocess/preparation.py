"""Preparation of slices from scans, staged as PNG until their split is known; in workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline.contracts import Orientation, SkippedRecord, TumorReport
from pipeline.errors import DataError
from pipeline.seeding import numpy_rng
from pipeline.workers import start_workers
from stages.components.imaging.head import prepare_pair, prepare_slice
from stages.components.imaging.pixels import save_png, to_rgb
from stages.components.imaging.scans import Plane, Scan, read_planes
from stages.components.tumor_report.truth import build_truth
from stages.preprocess.duplicates import Fingerprint, take_fingerprint

WORKERS_PAY_FROM = 200  # scans; below, starting processes costs more than it saves
CHUNK = 16  # scans handed to a worker at a time


@dataclass(frozen=True)
class Job:
    """One scan and all that a worker needs to prepare it."""

    scan: Scan
    staging: Path
    image_size: int
    crop_margin: float
    slices_per_scan: int
    seed: int


@dataclass(frozen=True)
class Prepared:
    """One slice, staged: everything that is known before its split is."""

    slice_id: str
    scan: Scan
    orientation: Orientation
    width_px: int
    height_px: int
    has_mask: bool
    truth: TumorReport | None
    fingerprint: Fingerprint


@dataclass(frozen=True)
class ScanOutcome:
    """What became of one scan."""

    scan_id: str
    slices: tuple[Prepared, ...]
    skipped: tuple[SkippedRecord, ...]  # whole scans and single planes

    @property
    def is_lost(self) -> bool:
        """Whether nothing of the scan can be used."""
        return not self.slices


def image_name(slice_id: str) -> str:
    """Name the staged image of a slice."""
    return f"{slice_id}.png"


def mask_name(slice_id: str) -> str:
    """Name the staged mask of a slice."""
    return f"{slice_id}.mask.png"


def prepare_scan(job: Job) -> ScanOutcome:
    """Read a scan, prepare its planes and stage them as PNG; bad input becomes a skipped record."""
    scan = job.scan
    try:
        rng = numpy_rng(job.seed, "preprocess", scan.scan_id)
        planes = read_planes(scan, job.slices_per_scan, rng)
        file_sha256 = hashlib.sha256(scan.path.read_bytes()).hexdigest()
    except DataError as error:
        skipped_scan = SkippedRecord(original=scan.original, reason=str(error))
        return ScanOutcome(scan.scan_id, (), (skipped_scan,))
    slices, skipped = [], []
    for plane in planes:
        try:
            slices.append(_prepare_plane(job, plane, file_sha256))
        except DataError as error:
            where = f"{plane.orientation} plane {plane.index}: " if scan.is_volume else ""
            skipped.append(SkippedRecord(original=scan.original, reason=f"{where}{error}"))
    return ScanOutcome(scan.scan_id, tuple(slices), tuple(skipped))


def _prepare_plane(job: Job, plane: Plane, file_sha256: str) -> Prepared:
    scan = job.scan
    slice_id = scan.scan_id
    if scan.is_volume:
        slice_id = f"{scan.scan_id}-{plane.orientation}-{plane.index:03d}"
    mask = None
    if plane.mask is None:
        image = prepare_slice(plane.image, job.image_size, job.crop_margin)
    else:
        image, mask = prepare_pair(plane.image, plane.mask, job.image_size, job.crop_margin)
        save_png(job.staging / mask_name(slice_id), mask)
    save_png(job.staging / image_name(slice_id), to_rgb(image))
    return Prepared(
        slice_id=slice_id,
        scan=scan,
        orientation=plane.orientation,
        width_px=plane.image.shape[1],
        height_px=plane.image.shape[0],
        has_mask=mask is not None,
        truth=build_truth(scan, plane.orientation, image, mask),
        fingerprint=take_fingerprint(plane.image, image, file_sha256),
    )


def iter_outcomes(jobs: Iterable[Job], num_workers: int) -> Iterator[ScanOutcome]:
    """Prepare scans in order, in worker processes where there are enough of them to pay."""
    waiting = iter(jobs)
    first = list(islice(waiting, WORKERS_PAY_FROM))
    if num_workers < 2 or len(first) < WORKERS_PAY_FROM:
        for job in first:
            yield prepare_scan(job)
        for job in waiting:
            yield prepare_scan(job)
        return
    with start_workers(num_workers) as pool:
        yield from pool.map(prepare_scan, first, chunksize=CHUNK)
        yield from pool.map(prepare_scan, waiting, chunksize=CHUNK)
