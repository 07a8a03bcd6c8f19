"""Training log: one row per optimiser step, in JSON Lines, and what it says of checkpoints."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pipeline.contracts import CheckpointRecord
from pipeline.errors import ArtifactError
from pipeline.files import JournalFile, write_text
from pipeline.settings import FinetuneConfig
from stages.finetune.checkpoints import checkpoint_path

LOG_FILE = "train_log.jsonl"
Measure = Literal["held_out_loss", "kid"]  # what states are compared by; less is better


@dataclass(frozen=True)
class LogRow:
    """One optimiser step; step 0 is the base model before any."""

    step: int
    loss: float | None  # weighted, mean over the step's samples
    lr: float  # the UNet's rate in this step
    grad_norm: float | None  # before clipping
    held_out_loss: float | None  # after the step; None where it was not computed
    seconds: float  # spent training so far, over all resumptions
    kid: float | None = None  # after the step, where finetune.select_by is kid


def measure_of(config: FinetuneConfig) -> Measure:
    """Say what the states of a training are compared by."""
    return "kid" if config.kid_selects else "held_out_loss"


def read_log(path: Path, last_step: int) -> list[LogRow]:
    """Read the rows up to a step; later ones belong to steps that will be done again.

    A kill may have cut the last line; it lies after the checkpoint and is left out.

    Raises:
        ArtifactError: A step before the checkpoint is lost.
    """
    rows = {row.step: row for row in _file(path).read()}
    lost = [step for step in range(last_step + 1) if step not in rows]
    if lost:
        raise ArtifactError(
            f"{path} has lost step {lost[0]} of {last_step} that are done; delete {path.parent} "
            "to train from the start"
        )
    return [rows[step] for step in range(last_step + 1)]


def write_log(path: Path, rows: Iterable[LogRow]) -> None:
    """Write the log anew."""
    write_text(path, "".join(json.dumps(asdict(row)) + "\n" for row in rows))


def append_log(path: Path, row: LogRow) -> None:
    """Add one row; on the disk once synced."""
    _file(path).append([asdict(row)])


def sync_log(path: Path) -> None:
    """Wait until the disk has all rows: before the checkpoint that goes on from them."""
    _file(path).sync()


def _file(path: Path) -> JournalFile[LogRow]:
    return JournalFile(path, lambda row: LogRow(**row))


def best_step(log: Sequence[LogRow], measure: Measure = "held_out_loss") -> int | None:
    """Return the step with the least of a measure (the first of equals), not counting step 0."""
    values = measured(log, measure)
    return min(values, key=lambda step: values[step]) if values else None


def bests(log: Sequence[LogRow], states: Iterable[int], measure: Measure) -> set[int | None]:
    """Return the steps that are the best now, or were when one of `states` was kept."""
    return {best_step(log[: step + 1], measure) for step in (*states, log[-1].step)}


def is_past_best(
    log: Sequence[LogRow], patience: int | None, measure: Measure = "held_out_loss"
) -> bool:
    """Tell whether the last `patience` values of a measure all came after its least one."""
    steps = list(measured(log, measure))
    best = best_step(log, measure)
    if best is None or patience is None:
        return False
    return len(steps) - 1 - steps.index(best) >= patience


def measured(log: Sequence[LogRow], measure: Measure = "held_out_loss") -> dict[int, float]:
    """Map steps to what was measured after them, in order, without step 0."""
    values = {row.step: getattr(row, measure) for row in log if row.step}
    return {step: value for step, value in values.items() if value is not None}


@dataclass(frozen=True)
class Pace:
    """How fast this process trains, and the memory it takes."""

    images_per_second: float
    memory_gib: float  # at its peak on a GPU, now on the CPU


def describe_row(row: LogRow, max_steps: int, pace: Pace) -> str:
    """Say in one line how far the training is."""
    held_out = "" if row.held_out_loss is None else f", held-out {row.held_out_loss:.4f}"
    held_out += "" if row.kid is None else f", KID {row.kid:.4f}"
    left = row.seconds / max(1, row.step) * (max_steps - row.step)
    return (
        f"finetune: step {row.step} of {max_steps}, loss {row.loss or 0.0:.4f}{held_out}, "
        f"rate {row.lr:.2e}, {pace.images_per_second:.1f} images/s, {pace.memory_gib:.1f} GiB, "
        f"{left:.0f} s left"
    )


def as_scalars(row: LogRow, pace: Pace) -> dict[str, float]:
    """Name a step's numbers for TensorBoard and W&B; those that were not computed are left out."""
    named = {
        "train/loss": row.loss,
        "train/learning_rate": row.lr,
        "train/gradient_norm": row.grad_norm,
        "validation/loss": row.held_out_loss,
        "validation/kid": row.kid,
        "speed/images_per_second": pace.images_per_second,
        "speed/memory_gib": pace.memory_gib,
    }
    return {name: value for name, value in named.items() if value is not None}


def checkpoint_records(
    log: Sequence[LogRow], kept: Sequence[int], result: int
) -> list[CheckpointRecord]:
    """Describe the kept states, the result last; `train_loss` is the mean since the one before."""
    records = []
    for step, is_result in [*((step, False) for step in kept), (result, True)]:
        since = max((other for other in kept if other < step), default=0)
        losses = [row.loss for row in log if since < row.step <= step and row.loss is not None]
        held_out = next(row.held_out_loss for row in log if row.step == step)
        assert held_out is not None, step  # every kept state was measured
        records.append(
            CheckpointRecord(
                step=step,
                path="." if is_result else checkpoint_path(Path(), step).as_posix(),
                train_loss=sum(losses) / len(losses),
                held_out_loss=held_out,
            )
        )
    return records
