"""What a generation has finished, image by image, so that a killed run goes on from there."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.contracts import SyntheticRecord

PATTERN = "generate.journal*.jsonl"


@dataclass(frozen=True)
class Outcome:
    """An image that is on disk, or None after its last attempt; and what was wrong before."""

    image_id: str
    record: SyntheticRecord | None
    faults: tuple[str, ...]


def journal_path(root: Path, shard: int, num_shards: int) -> Path:
    """Name the journal of one process; each has its own."""
    which = f".{shard + 1}-of-{num_shards}" if num_shards > 1 else ""
    return root / f"generate.journal{which}.jsonl"


def append(path: Path, outcome: Outcome) -> None:
    """Add an image, which must be on disk already."""
    record = outcome.record
    row = {
        "image_id": outcome.image_id,
        "record": None if record is None else record.model_dump(mode="json"),
        "faults": outcome.faults,
    }
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")


def read_all(root: Path) -> dict[str, Outcome]:
    """Read the journals of all processes, by image, and cut off lines that a kill tore."""
    found: dict[str, Outcome] = {}
    for path in sorted(root.glob(PATTERN)):
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            path.write_bytes(whole)
        for line in whole.splitlines():
            row = json.loads(line)
            record = None if row["record"] is None else SyntheticRecord(**row["record"])
            found[row["image_id"]] = Outcome(row["image_id"], record, tuple(row["faults"]))
    return found


def remove_all(root: Path) -> None:
    """Remove the journals; the records hold all of it."""
    for path in root.glob(PATTERN):
        path.unlink()


def count_faults(outcomes: Sequence[Outcome]) -> Counter[str]:
    """Count the attempts that failed, by fault."""
    return Counter(fault for outcome in outcomes for fault in outcome.faults)
