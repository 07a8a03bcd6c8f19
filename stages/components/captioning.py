"""What every captioner does, and the journal that survives a kill."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.contracts import SliceRecord
from pipeline.errors import ArtifactError


@dataclass(frozen=True)
class Failure:
    """A slice that got no caption, and why; counted, never replaced by an invented one."""

    reason: str


class Captioner(Protocol):
    """Writes captions. A caption depends on its own slice alone, never on the batch around it."""

    batch_size: int  # slices a call; also what a kill may cost

    def describe(
        self, slices: Sequence[SliceRecord], image_paths: Sequence[Path]
    ) -> Sequence[str | Failure]:
        """Write one raw text (or say why not) per slice, in order.

        Args:
            slices: what is known about the slices; a real VLM looks at none of it.
            image_paths: their PNGs, RGB uint8, in the same order.
        """
        ...


class Journal:
    """Captions as they came, one JSON line each, appended and synced batch by batch.

    A kill loses at most the batch in work; a last line cut short is dropped on reading.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, str | Failure]:
        """Return what was written, by slice, and cut off a torn last line.

        Raises:
            ArtifactError: A whole line is not one of ours.
        """
        if not self.path.exists():
            return {}
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        done: dict[str, str | Failure] = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                slice_id, raw, reason = row["slice_id"], row["raw"], row["reason"]
            except (ValueError, KeyError, TypeError) as error:
                raise ArtifactError(
                    f"{self.path} line {number}: not a journal entry ({error!r}); "
                    f"delete {self.path.parent} and run again"
                ) from error
            done[slice_id] = Failure(reason) if raw is None else raw
        return done

    def append(self, answers: Mapping[str, str | Failure]) -> None:
        """Add the answers of one batch, by slice."""
        with self.path.open("a", encoding="utf-8") as file:
            for slice_id, answer in answers.items():
                failed = isinstance(answer, Failure)
                row = {
                    "slice_id": slice_id,
                    "raw": None if failed else answer,
                    "reason": answer.reason if isinstance(answer, Failure) else None,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
