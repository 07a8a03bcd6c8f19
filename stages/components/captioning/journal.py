"""Journal of a captioning run: answers so far, one JSON line each."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.files import JournalFile
from stages.components.captioning.captioner import (
    Failure,
    Paid,
    Reply,
    Usage,
    answer_of,
    model_of,
    usage_of,
)


class Journal:
    """Replies as they came, failures too, one JSON line each; synced to the disk batch by batch.

    A kill loses at most the batch in work; a line that is torn or foreign is a loss, counted and
    asked again. Of two replies for one slice the later counts, and the price of both.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = JournalFile(path, _read_row)

    def read(self) -> dict[str, Reply]:
        """Return what was written, by slice, and take out lines that are torn or wrong."""
        done: dict[str, Reply] = {}
        for slice_id, reply in self._file.read():
            before = usage_of([done[slice_id]] if slice_id in done else [])
            if before != Usage():
                reply = Paid(answer_of(reply), before + usage_of([reply]), model_of(reply))
            done[slice_id] = reply
        return done

    def append(self, replies: Mapping[str, Reply]) -> None:
        """Add replies by slice: safe from a kill of this process, from a power cut once synced."""
        self._file.append(_row(slice_id, reply) for slice_id, reply in replies.items())

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        self._file.sync()


def _row(slice_id: str, reply: Reply) -> dict[str, Any]:
    answer = answer_of(reply)
    failed = answer if isinstance(answer, Failure) else None
    return {
        "slice_id": slice_id,
        "raw": None if failed else answer,
        "reason": failed.reason if failed else None,
        "usage": asdict(reply.usage) if isinstance(reply, Paid) else None,
        "model": model_of(reply),
    }


def _read_row(row: Mapping[str, Any]) -> tuple[str, Reply]:
    slice_id, raw, usage = row["slice_id"], row["raw"], row["usage"]
    if not isinstance(slice_id, str) or not isinstance(raw, str | None):
        raise TypeError(f"expected a slice and text, found {slice_id!r:.40} and {raw!r:.40}")
    answer = Failure(row["reason"]) if raw is None else raw
    return slice_id, answer if usage is None else Paid(answer, Usage(**usage), row["model"])
