"""Test slices that a training run sees once, after its state was chosen on validation; the proof.

A run's state is named by the SHA-256 of its weights when it is chosen. Only that state may predict
the test slices, and only once; what was looked at, and by which state, goes to the manifest.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.files import read_entry, write_text
from stages.classify import training
from stages.classify.training import ChosenNetwork, GrayBatch

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class TrainingRun:
    """What one training run left behind: its losses and its only look at the test slices."""

    steps: tuple[int, ...]
    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    chosen_step: int
    is_chosen: bool  # by validation loss; else it is the last state
    state_sha256: str  # of the weights that predicted
    test_sha256: str  # of the slices that were predicted
    val_probability: Rows  # (validation slice, class) of the chosen state
    probability: Rows  # (test slice, class), in the order of `slice_id`
    slice_id: tuple[str, ...]


class HeldOut:
    """The test slices of one task, and who looked at them."""

    def __init__(self, images: GrayBatch, slice_ids: Sequence[str]) -> None:
        self.slice_ids = tuple(slice_ids)
        digest = hashlib.sha256("\n".join(self.slice_ids).encode())
        digest.update(images.tobytes())
        self.sha256 = digest.hexdigest()
        self.looks: dict[str, TrainingRun] = {}
        self._images = images

    def predict(self, key: str, trained: ChosenNetwork, device: str) -> TrainingRun:
        """Let the chosen state of a run predict the test slices, once.

        Raises:
            TrainingError: The run looked already, or its weights are no longer the chosen ones.
        """
        if key in self.looks:
            raise TrainingError(
                f"classify: {key!r} has predicted the test slices before; a second look would let "
                "them choose. Delete the run's folder and start again"
            )
        sha256 = training.state_sha256(trained.network.state_dict())
        if sha256 != trained.state_sha256:
            raise TrainingError(
                f"classify: {key!r} chose the state {trained.state_sha256[:12]} on validation, "
                f"but {sha256[:12]} was to predict the test slices; only a chosen state may"
            )
        curve = trained.curve
        run = TrainingRun(
            steps=curve.steps,
            train_loss=curve.train_loss,
            val_loss=curve.val_loss,
            chosen_step=curve.chosen_step,
            is_chosen=curve.is_chosen,
            state_sha256=sha256,
            test_sha256=self.sha256,
            val_probability=_rows(trained.val_probability),
            probability=_rows(training.predict(trained.network, self._images, device)),
            slice_id=self.slice_ids,
        )
        self.looks[key] = run
        return run

    def remember(self, key: str, path: Path) -> TrainingRun | None:
        """Read a finished run of the same test slices; None if there is none, or a damaged one."""
        run = read_entry(path, _read_run)
        if run is None or run.test_sha256 != self.sha256:
            return None
        self.looks[key] = run
        return run

    def proof(self) -> dict[str, Any]:
        """Say what was predicted, how often and by which states: JSON values for the manifest."""
        return {
            "num_slices": len(self.slice_ids),
            "sha256": self.sha256,
            "looks": {
                key: {
                    "looks": 1,
                    "chosen_step": run.chosen_step,
                    "chosen_on": "validation loss" if run.is_chosen else "nothing: the last step",
                    "state_sha256": run.state_sha256,
                }
                for key, run in self.looks.items()
            },
        }


def write_run(path: Path, run: TrainingRun) -> None:
    """Write a finished training run; the file is whole or absent."""
    write_text(path, json.dumps(asdict(run), sort_keys=True) + "\n")


def _read_run(path: Path) -> TrainingRun:
    row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return TrainingRun(**{name: _freeze(value) for name, value in row.items()})


def _rows(values: NDArray[np.float64]) -> Rows:
    return tuple(tuple(row) for row in values.tolist())


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value
