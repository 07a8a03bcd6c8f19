"""A judge trained here, on the true masks of the run's own training slices.

Its threshold is chosen on validation slices; test slices only say how good it is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pipeline.contracts import Artifact, Context, Section, SliceRecord, Split
from stages.components.imaging.pixels import pad_to_square, read_image, resize
from stages.components.judge.reading import read_core

if TYPE_CHECKING:
    from stages.components.judge.network import Judge, JudgeConfig
    from stages.components.judge.training import JudgeData

CHECKED_ON: tuple[Split, ...] = ("test",)  # real slices that tell its accuracy
LEAST_SLICES = 20  # of training, with a tumour in their mask


class Settings(Section):
    """How the judge is trained; steps are optimiser steps."""

    image_size: int = Field(128, ge=32, multiple_of=16)  # px, of slices as it sees them
    steps: int = Field(2500, ge=1)
    batch_size: int = Field(12, ge=1)
    learning_rate: float = Field(2e-3, gt=0)


def refuse(settings: Settings, slices: Sequence[SliceRecord]) -> str | None:
    """Say why these slices cannot be judged; None where they can."""
    masked = sum(item.truth.tumor is True for item in within(slices, "train") if item.truth)
    if masked < LEAST_SLICES:
        return (
            f"a judge needs at least {LEAST_SLICES} training slices with a tumour in their mask, "
            f"found {masked}"
        )
    return None


def within(slices: Sequence[SliceRecord], split: Split) -> list[SliceRecord]:
    """List the slices of a split whose truth is known: with a mask, or tumour-free by class."""
    return [item for item in slices if item.split == split and item.truth is not None]


def obtain(
    settings: Settings, preprocess: Artifact[SliceRecord], folder: Path, context: Context
) -> "Judge":
    """Train the judge, or go on where a killed run stopped; it is kept in `folder`.

    Raises:
        TrainingError: The training failed, or the checkpoint is another one's.
    """
    from stages.components.judge.network import CONFIG, Judge
    from stages.components.judge.training import JudgeTraining, calibrate, config_for, train

    if not (folder / CONFIG).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        slices = list(preprocess.records())
        training_slices, others = within(slices, "train"), within(slices, "val")
        truths = [item.truth for item in training_slices if item.truth is not None]
        config = config_for(truths, settings.image_size)
        held_out = read_data(preprocess, others, config) if others else None
        judge = train(
            read_data(preprocess, training_slices, config),
            held_out,
            config,
            folder,
            JudgeTraining(
                seed=context.seed,
                steps=settings.steps,
                batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                warmup_steps=min(60, settings.steps),
            ),
            context.device,
            context.progress,
        )
        if held_out is not None:
            judge = calibrate(judge, held_out)
        judge.save(folder)
        (folder / "judge.ckpt").unlink()
    return Judge.load(folder, context.device)


def read_data(
    preprocess: Artifact[SliceRecord], slices: Sequence[SliceRecord], config: "JudgeConfig"
) -> "JudgeData":
    """Read slices and their masks at the judge's size; at least one of them.

    Raises:
        DataError: A file cannot be read.
    """
    from stages.components.judge.training import build_data

    reports, size = [item.truth for item in slices if item.truth is not None], config.image_size
    images = [
        resize(pad_to_square(read_image(preprocess.path(item.image_path))), size) for item in slices
    ]
    masks = [
        read_core(None if item.mask_path is None else preprocess.path(item.mask_path), size)
        for item in slices
    ]
    return build_data(np.stack(images), np.stack(masks), reports, config)
