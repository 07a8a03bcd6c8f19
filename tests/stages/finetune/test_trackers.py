import importlib.util
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import TrainingError
from stages.finetune import trackers
from stages.finetune.side_products import SideProducts


def open_them(
    names: list[str],
    folder: Path,
    first_step: int = 1,
    warn: Callable[[str], None] = print,
) -> trackers.Trackers:
    return trackers.Trackers(
        names,
        folder,
        experiment="mini",
        first_step=first_step,
        config={"lora_rank": 4},
        side=SideProducts(warn),
    )


def write_events(folder: Path, first_step: int, value: float) -> None:
    tracker = open_them(["tensorboard"], folder, first_step)
    for step in range(first_step, 5):
        tracker.log(step, {"train/loss": value})
        tracker.show(step, "samples", np.zeros((4, 4, 3), np.uint8))
    tracker.close()


@pytest.mark.parametrize("starts", [[(1, 1.0), (3, 2.0)], [(1, 1.0), (4, 9.0), (3, 2.0)]])
def test_event_files_hide_what_a_killed_run_wrote_beyond_its_checkpoint(
    tmp_path: Path, starts: list[tuple[int, float]]
) -> None:
    """The second case goes back beyond the newest state, which was damaged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step, value in starts:
        write_events(tmp_path, first_step, value)
    events = EventAccumulator(str(tmp_path / trackers.TENSORBOARD))
    events.Reload()
    numbers = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert numbers == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert [event.step for event in events.Images("samples")] == [1, 2, 3, 4]


def test_event_files_do_not_name_the_machine(tmp_path: Path) -> None:
    write_events(tmp_path, 1, 1.0)
    (path,) = (tmp_path / trackers.TENSORBOARD).iterdir()
    assert path.name == "events.out.tfevents.0000000001"
    assert socket.gethostname().encode() not in path.read_bytes()


def use_wandb(monkeypatch: pytest.MonkeyPatch, init: Callable[..., Any]) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_wandb_gets_numbers_and_settings_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    use_wandb(monkeypatch, lambda **given: calls.append(given) or run)
    tracker = open_them(["wandb"], tmp_path / "abc123.partial")
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
            "settings": trackers.WANDB_SETTINGS,
        },
        (2, {"train/loss": 0.5}),
        "end",
    ]


def test_a_tracker_that_fails_is_a_warning_and_the_other_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**given: Any) -> Any:
        raise ConnectionError("no network\nand much more")

    use_wandb(monkeypatch, refuse)
    warnings: list[str] = []
    tracker = open_them(["wandb", "tensorboard"], tmp_path, warn=warnings.append)
    tracker.log(1, {"train/loss": 0.5})
    shutil.rmtree(tmp_path / trackers.TENSORBOARD)
    for step in (2, 3):
        tracker.log(step, {"train/loss": 0.5})
    tracker.close()
    first, second = warnings
    assert first == (
        "wandb is left out, since it failed (ConnectionError: no network); all else goes on"
    )
    assert second.startswith("tensorboard is left out, since it failed (FileNotFoundError: ")


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"'wandb' needs the package wandb"):
        open_them(["wandb"], tmp_path)
