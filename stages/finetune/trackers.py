"""Trackers of a training: TensorBoard event files, and W&B if asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import TrainingError
from stages.components.imaging.pixels import RgbImage
from stages.finetune.checks import missing_library

TENSORBOARD = "tensorboard"  # folder of the event files inside the artifact


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
    """Event files below `folder/tensorboard`; `first_step` hides what a killed run wrote beyond."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def show(self, step: int, name: str, image: RgbImage) -> None:
        self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run on W&B; the server, the key and offline mode are its own environment variables'."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=project, name=name, id=name, resume="allow", config=dict(config)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def show(self, step: int, name: str, image: RgbImage) -> None:
        """Do nothing: what was learnt from patients' slices stays on this machine."""

    def close(self) -> None:
        self.run.finish()


def open_trackers(
    names: Sequence[str],
    folder: Path,
    *,
    experiment: str,
    first_step: int,
    config: Mapping[str, Any],
) -> list[Tracker]:
    """Open the trackers that the configuration names.

    Args:
        names: "tensorboard", "wandb".
        folder: The artifact under construction; its name is the run's name.
        experiment: W&B's project is `mrisynth-EXPERIMENT`.
        first_step: Numbers from this step on will come (again).
        config: Settings, for W&B. Neither images nor captions are sent.

    Raises:
        TrainingError: A tracker's library is not installed.
    """
    for problem in filter(None, map(missing_library, names)):
        raise TrainingError(problem)
    opened: list[Tracker] = []
    for name in names:
        if name == "tensorboard":
            opened.append(TensorBoard(folder, first_step))
        else:
            run = folder.name.removesuffix(".partial")
            opened.append(WandB(f"mrisynth-{experiment}", run, config))
    return opened
