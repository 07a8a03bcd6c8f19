"""Trackers of a training: TensorBoard event files, and W&B if asked for."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import TrainingError
from stages.components.imaging.pixels import RgbImage
from stages.finetune.checks import missing_library
from stages.finetune.side_products import SideProducts

TENSORBOARD = "tensorboard"  # folder of the event files inside the artifact
# No name of the host, no command, path or repository, and nothing of what is printed.
WANDB_SETTINGS = {"console": "off", "disable_git": True, "host": "", "x_disable_meta": True}


class Tracker(Protocol):
    """Takes numbers by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of one optimiser step."""
        ...

    def show(self, step: int, name: str, image: RgbImage) -> None:
        """Show an image of one optimiser step, uint8 (height, width, 3)."""
        ...

    def close(self) -> None:
        """Write out what is waiting."""
        ...


class TensorBoard:
    """An event file below `folder/tensorboard`; `first_step` hides what a killed run wrote beyond.

    Written record by record: `SummaryWriter` puts the host's name into that of its file.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        # Files are read in the order of their names.
        self.path = folder / TENSORBOARD / f"events.out.tfevents.{first_step:010d}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for earlier in self.path.parent.glob("events.out.tfevents.*"):
            if earlier.name >= self.path.name:
                earlier.unlink()
        start = SessionLog(status=SessionLog.START)
        self._append(first_step, {"file_version": "brain.Event:2"}, {"session_log": start})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import scalar

        self._append(step, *({"summary": scalar(name, value)} for name, value in values.items()))

    def show(self, step: int, name: str, image: RgbImage) -> None:
        from torch.utils.tensorboard.summary import image as as_summary

        self._append(step, {"summary": as_summary(name, image, dataformats="HWC")})

    def close(self) -> None:
        """Do nothing: nothing waits."""

    def _append(self, step: int, *contents: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self.path.open("ab") as file:
            writer = RecordWriter(file)
            for content in contents:
                event = Event(wall_time=time.time(), step=step, **content)
                writer.write(event.SerializeToString())


class WandB:
    """A run on W&B; the server, the key and offline mode are its own environment variables'."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=project,
            name=name,
            id=name,
            resume="allow",
            config=dict(config),
            settings=WANDB_SETTINGS,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def show(self, step: int, name: str, image: RgbImage) -> None:
        """Do nothing: what was learnt from patients' slices stays on this machine."""

    def close(self) -> None:
        self.run.finish()


class Trackers:
    """The trackers that a configuration names; one that fails is said and left out.

    Args:
        names: "tensorboard", "wandb".
        folder: The artifact under construction; its name is the run's name.
        experiment: W&B's project is `mrisynth-EXPERIMENT`.
        first_step: Numbers from this step on will come (again).
        config: Settings, for W&B. Neither images nor captions are sent.
        side: Hears of failures.

    Raises:
        TrainingError: A tracker's library is not installed.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        *,
        experiment: str,
        first_step: int,
        config: Mapping[str, Any],
        side: SideProducts,
    ) -> None:
        for problem in filter(None, map(missing_library, names)):
            raise TrainingError(problem)
        run = folder.name.removesuffix(".partial")
        makers: dict[str, Callable[[], Tracker]] = {
            "tensorboard": lambda: TensorBoard(folder, first_step),
            "wandb": lambda: WandB(f"mrisynth-{experiment}", run, config),
        }
        self.side = side
        opened = {name: side.attempt(name, makers[name]) for name in names}
        self.opened = {name: tracker for name, tracker in opened.items() if tracker is not None}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of one optimiser step everywhere."""
        for name, tracker in self.opened.items():
            self.side.attempt(name, partial(tracker.log, step, values))

    def show(self, step: int, name: str, image: RgbImage) -> None:
        """Show an image of one optimiser step everywhere."""
        for tracker_name, tracker in self.opened.items():
            self.side.attempt(tracker_name, partial(tracker.show, step, name, image))

    def close(self) -> None:
        """Write out what is waiting everywhere."""
        for name, tracker in self.opened.items():
            self.side.attempt(name, tracker.close)
