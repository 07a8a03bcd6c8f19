"""Journal of prepared scans, so that a killed run prepares what is left and nothing twice.

It lies in the artifact's scratch beside the staged slices. An entry whose images are not those that
were staged is lost, and its scan prepared again.
"""

import base64
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts import ArtifactWriter, SkippedRecord, SliceRecord, TumorReport
from pipeline.files import JournalFile, fingerprint, is_unchanged
from stages.components.imaging.scans import Scan
from stages.preprocess.duplicates import THUMBNAIL_PX, Fingerprint
from stages.preprocess.preparation import (
    Job,
    Prepared,
    ScanOutcome,
    image_name,
    iter_outcomes,
    mask_name,
)

JOURNAL = "prepared.jsonl"
STAGING = "staging"  # prepared slices wait here until their split is known
Row = dict[str, Any]


def iter_resumed(
    scans: Iterable[Scan],
    build_job: Callable[[Scan, Path], Job],
    output: ArtifactWriter[SliceRecord],
    num_workers: int,
) -> Iterator[ScanOutcome]:
    """Prepare every scan that the journal does not hold, then hand out those that it holds.

    Args:
        scans: Of the source, all of them.
        build_job: Makes the job of a scan whose slices are staged in a folder.
        output: Its scratch holds journal and staged slices; its images go back there.
        num_workers: Processes, where there are enough scans to pay.
    """
    staging = output.scratch(STAGING)
    staging.mkdir(exist_ok=True)
    _stage_again(output.root, staging)
    journal = JournalFile(output.scratch(JOURNAL), lambda row: _checked(row, staging))
    known = {row["scan_id"]: row for row in journal.read()}
    resumed: list[ScanOutcome] = []

    def jobs() -> Iterator[Job]:
        for scan in scans:
            if scan.scan_id in known:
                resumed.append(_read(known[scan.scan_id], scan))
            else:
                yield build_job(scan, staging)

    for outcome in iter_outcomes(jobs(), num_workers):
        journal.append([_row(outcome, staging)])
        yield outcome
    yield from resumed


def _stage_again(root: Path, staging: Path) -> None:
    """Take back what a killed run had moved to its split."""
    for folder, rename in (("images", image_name), ("masks", mask_name)):
        for path in (root / folder).rglob("*.png"):
            os.replace(path, staging / rename(path.stem))


def _row(outcome: ScanOutcome, staging: Path) -> Row:
    return {
        "scan_id": outcome.scan_id,
        "slices": [_slice_row(item, staging) for item in outcome.slices],
        "skipped": [record.model_dump(mode="json") for record in outcome.skipped],
    }


def _slice_row(item: Prepared, staging: Path) -> Row:
    names = [image_name(item.slice_id), *([mask_name(item.slice_id)] if item.has_mask else [])]
    thumbnail = base64.b64encode(item.fingerprint.thumbnail.tobytes()).decode()
    return {
        "slice_id": item.slice_id,
        "orientation": item.orientation,
        "width_px": item.width_px,
        "height_px": item.height_px,
        "has_mask": item.has_mask,
        "truth": None if item.truth is None else item.truth.model_dump(mode="json"),
        "fingerprint": {**asdict(item.fingerprint), "thumbnail": thumbnail},
        "files": {name: fingerprint(staging / name) for name in names},
    }


def _checked(row: Row, staging: Path) -> Row:
    for item in row["slices"]:
        for name, known in item["files"].items():
            if not is_unchanged(staging / name, known):
                raise ValueError(f"{name} is not the file that was staged")
    return row


def _read(row: Row, scan: Scan) -> ScanOutcome:
    return ScanOutcome(
        scan_id=scan.scan_id,
        slices=tuple(_read_slice(item, scan) for item in row["slices"]),
        skipped=tuple(SkippedRecord.model_validate(record) for record in row["skipped"]),
    )


def _read_slice(row: Row, scan: Scan) -> Prepared:
    thumbnail = np.frombuffer(base64.b64decode(row["fingerprint"]["thumbnail"]), dtype=np.uint8)
    shape = (THUMBNAIL_PX, THUMBNAIL_PX)
    return Prepared(
        slice_id=row["slice_id"],
        scan=scan,
        orientation=row["orientation"],
        width_px=row["width_px"],
        height_px=row["height_px"],
        has_mask=row["has_mask"],
        truth=None if row["truth"] is None else TumorReport.model_validate(row["truth"]),
        fingerprint=Fingerprint(**{**row["fingerprint"], "thumbnail": thumbnail.reshape(shape)}),
    )
