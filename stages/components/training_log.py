"""The training log: one row per optimiser step, in JSON Lines, and what it says of checkpoints."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.contracts import CheckpointRecord
from stages.components.checkpointing import checkpoint_path

LOG_FILE = "train_log.jsonl"


@dataclass(frozen=True)
class LogRow:
    """One optimiser step; step 0 is the base model before any."""

    step: int
    loss: float | None  # weighted, mean over the step's samples
    lr: float  # the UNet's rate in this step
    grad_norm: float | None  # before clipping
    held_out_loss: float | None  # after the step; None where it was not computed
    seconds: float  # spent training so far, over all resumptions


def read_log(path: Path, last_step: int) -> list[LogRow]:
    """Read the rows up to a step; later ones belong to steps that will be done again.

    A kill may have cut the last line; it lies after the checkpoint and is left out.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [LogRow(**json.loads(line)) for line in lines if line.endswith("}")]
    return [row for row in rows if row.step <= last_step]


def write_log(path: Path, rows: Iterable[LogRow]) -> None:
    """Write the log anew."""
    path.write_text("".join(map(as_line, rows)), encoding="utf-8")


def append_log(path: Path, row: LogRow) -> None:
    """Add one row."""
    with path.open("a", encoding="utf-8") as out:
        out.write(as_line(row))


def as_line(row: LogRow) -> str:
    """Write a row as a line of JSON."""
    return json.dumps(asdict(row)) + "\n"


def describe_row(row: LogRow, max_steps: int) -> str:
    """Say in one line how far the training is."""
    held_out = "" if row.held_out_loss is None else f", held-out {row.held_out_loss:.4f}"
    left = row.seconds / max(1, row.step) * (max_steps - row.step)
    return (
        f"finetune: step {row.step} of {max_steps}, loss {row.loss or 0.0:.4f}{held_out}, "
        f"rate {row.lr:.2e}, {left:.0f} s left"
    )


def checkpoint_records(log: Sequence[LogRow], kept: Sequence[int]) -> list[CheckpointRecord]:
    """Describe the kept states, the result last; `train_loss` is the mean since the one before."""
    result = log[-1].step
    records, since = [], 0
    for step in [*kept, result]:
        losses = [row.loss for row in log if since < row.step <= step and row.loss is not None]
        held_out = next(row.held_out_loss for row in log if row.step == step)
        assert held_out is not None, step  # every kept state was judged
        records.append(
            CheckpointRecord(
                step=step,
                path="." if step == result else checkpoint_path(Path(), step).as_posix(),
                train_loss=sum(losses) / len(losses),
                held_out_loss=held_out,
            )
        )
        since = step
    return records
