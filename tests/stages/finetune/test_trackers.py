import importlib.util
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import TrainingError
from stages.finetune import trackers


def open_them(names: list[str], folder: Path, first_step: int = 1) -> list[trackers.Tracker]:
    return trackers.open_trackers(
        names, folder, experiment="mini", first_step=first_step, config={"lora_rank": 4}
    )


def test_event_files_hide_what_a_killed_run_wrote_beyond_its_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step, value in ((1, 1.0), (3, 2.0)):
        (tracker,) = open_them(["tensorboard"], tmp_path, first_step)
        for step in range(first_step, 5):
            tracker.log(step, {"train/loss": value})
        tracker.close()
        time.sleep(1.1)  # event files are read by the second of their birth, as runs have it
    events = EventAccumulator(str(tmp_path / trackers.TENSORBOARD))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_wandb_gets_numbers_and_settings_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    fake = SimpleNamespace(init=lambda **given: calls.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    (tracker,) = open_them(["wandb"], tmp_path / "abc123.partial")
    tracker.log(2, {"train/loss": 0.5})
    tracker.show(2, "samples", np.zeros((4, 4, 3), np.uint8))  # images stay here
    tracker.close()
    assert calls == [
        {
            "project": "mrisynth-mini",
            "name": "abc123",
            "id": "abc123",
            "resume": "allow",
            "config": {"lora_rank": 4},
        },
        (2, {"train/loss": 0.5}),
        "end",
    ]


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"'wandb' needs the package wandb"):
        open_them(["wandb"], tmp_path)
