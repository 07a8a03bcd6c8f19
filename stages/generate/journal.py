"""Journal of a generation, image by image, so that a killed run goes on from there.

The journals lie in the artifact's scratch, which holds them until the artifact is published.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.contracts import SCRATCH, SyntheticRecord, inside
from pipeline.files import JournalFile, fingerprint, is_unchanged, sync_all

PATTERN = f"{SCRATCH}/generate.journal*.jsonl"


@dataclass(frozen=True)
class ImageOutcome:
    """An image that is on disk, or None after its last attempt; and what was wrong before."""

    image_id: str
    record: SyntheticRecord | None
    faults: tuple[str, ...]


def journal_path(root: Path, shard: int, num_shards: int) -> Path:
    """Name the journal of one process; each has its own, in a folder that is there then."""
    which = f".{shard + 1}-of-{num_shards}" if num_shards > 1 else ""
    path = root / PATTERN.replace("*", which)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def append(path: Path, outcome: ImageOutcome) -> None:
    """Add an image, which must be there already, with its file's size and digest."""
    record = outcome.record
    row = {
        "image_id": outcome.image_id,
        "record": None if record is None else record.model_dump(mode="json"),
        "file": None if record is None else fingerprint(_root(path) / record.image_path),
        "faults": outcome.faults,
    }
    JournalFile(path).append([row])


def sync(path: Path, outcomes: Sequence[ImageOutcome]) -> None:
    """Wait until the disk has the images of some outcomes, and then their rows."""
    images = [_root(path) / o.record.image_path for o in outcomes if o.record is not None]
    sync_all([*images, *{image.parent for image in images}])
    JournalFile(path).sync()


def read_all(root: Path) -> dict[str, ImageOutcome]:
    """Read the journals of all processes, by image.

    An entry is lost, and its image made again, where the line is torn or wrong, or where the image
    is no longer the file that was written: a power cut may keep the one and not the other.
    """

    def read_row(row: Mapping[str, Any]) -> ImageOutcome:
        record = None if row["record"] is None else SyntheticRecord(**row["record"])
        if record is not None and not is_unchanged(inside(root, record.image_path), row["file"]):
            raise ValueError(f"{record.image_path} is not the file that was written")
        return ImageOutcome(str(row["image_id"]), record, tuple(row["faults"]))

    journals = (JournalFile(path, read_row).read() for path in sorted(root.glob(PATTERN)))
    return {outcome.image_id: outcome for outcomes in journals for outcome in outcomes}


def _root(path: Path) -> Path:
    """Return the artifact of a journal."""
    return path.parents[len(Path(PATTERN).parts) - 1]


def count_faults(outcomes: Sequence[ImageOutcome]) -> Counter[str]:
    """Count the attempts that failed, by fault."""
    return Counter(fault for outcome in outcomes for fault in outcome.faults)
