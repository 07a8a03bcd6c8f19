"""Slices, captions and random weights for trainings of a second or two."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    CheckpointRecord,
    Context,
    Label,
    Orientation,
    PluginConfig,
    SliceRecord,
    Split,
    write_records,
)
from pipeline.settings import FinetuneConfig
from stages.components.imaging.pixels import save_png, to_rgb
from stages.finetune.stage import STAGE, FinetuneInputs, prepare
from stages.finetune.trainer import Trainer
from tests.fabricate.pipelines import tiny_settings

SPLITS: tuple[Split, ...] = (*("train",) * 5, *("val",) * 3)
CAPTIONS = ("tumor: yes; location: left; size: small", "tumor: yes; size: large")
Train = Callable[..., ArtifactWriter[CheckpointRecord]]


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> FinetuneInputs:
    """Five captioned training slices, three for validation, and one whose caption failed."""
    return build_inputs(tmp_path_factory.mktemp("inputs"), SPLITS)


def build_inputs(
    root: Path,
    splits: Sequence[Split],
    labels: Sequence[Label] = ("glioma",),
    captions_in_turn: Sequence[str] = CAPTIONS,
    planes: Sequence[Orientation] = ("axial", "unknown"),
    mask: NDArray[np.uint8] | None = None,
) -> FinetuneInputs:
    """Write slices of the splits, labels, captions and planes in turn, all with one mask if any.

    One more has a caption that failed.
    """
    if mask is not None:
        save_png(root / "mask.png", mask)
    slices, captions = [], []
    for number, split in enumerate([*splits, "train"]):
        name = f"s{number}"
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
        save_png(root / f"{name}.png", to_rgb(pixels))
        slices.append(
            SliceRecord(
                slice_id=name,
                subject_id=name,
                group_id=name,
                source="fabricated",
                split=split,
                label=labels[number % len(labels)],
                orientation=planes[number % len(planes)],
                image_path=f"{name}.png",
                mask_path=None if mask is None else "mask.png",
                original=name,
                original_width_px=32,
                original_height_px=32,
            )
        )
        failed = number == len(splits)
        captions.append(
            CaptionRecord(
                file_name=f"{name}.png",
                text="" if failed else captions_in_turn[number % len(captions_in_turn)],
                slice_id=name,
                label=labels[number % len(labels)],
                split=split,
                status="failed" if failed else "ok",
                report=None,
                raw="",
                num_tokens=0,
            )
        )
    for name, rows in (("preprocess", slices), ("caption", captions)):
        (root / name).mkdir()
        write_records(root / name / "records.jsonl", rows)
    write_records(root / "records.jsonl", slices)
    return FinetuneInputs(
        preprocess=Artifact(root, "p", SliceRecord, {}),
        caption=Artifact(root / "caption", "c", CaptionRecord, {}),
    )


@pytest.fixture
def train(inputs: FinetuneInputs, weights_dir: Path, tmp_path: Path) -> Train:
    def run(name: str = "run", given: FinetuneInputs = inputs, **changes: Any) -> Any:
        return make(tmp_path / name, weights_dir, given, **changes)

    return run


@pytest.fixture
def prepare_training(inputs: FinetuneInputs, weights_dir: Path) -> Callable[..., Any]:
    """Give what the recipe trains with, before its first step: trainer, grid and probe."""

    def run(given: FinetuneInputs = inputs, **changes: Any) -> Any:
        context = Context("e", 0, "cpu", "float32", 1, weights_dir / "cache", lambda line: None)
        return prepare(configure(weights_dir, **changes), given, context)

    return run


@pytest.fixture
def build_trainer(prepare_training: Callable[..., Any]) -> Callable[..., Trainer]:
    return lambda *args, **changes: prepare_training(*args, **changes)[0]


def killed_after(step: int) -> Callable[[str], None]:
    """Return a progress that kills the training after a step."""

    def progress(line: str) -> None:
        if line.startswith(f"finetune: step {step} of "):
            raise KeyboardInterrupt

    return progress


def configure(weights_dir: Path, model: str = "sd15", **changes: Any) -> FinetuneConfig:
    """Ask for six steps on random weights."""
    settings = tiny_settings(registry.find(registry.BASE_MODELS, model), weights_dir)
    given = {
        "base_model": PluginConfig(name=model, settings=settings.model_dump()),
        "resolution": 32,
        "lora_rank": 4,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "max_steps": 6,
        "checkpoint_every": 2,
        "validate_every": 100,
    }
    return FinetuneConfig(**(given | changes))


def make(
    root: Path,
    weights_dir: Path,
    inputs: FinetuneInputs,
    dtype: str = "float32",
    progress: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> ArtifactWriter[CheckpointRecord]:
    """Train; a `progress` that raises kills the training between two steps."""
    output = ArtifactWriter(root, CheckpointRecord)
    output.root.mkdir(exist_ok=True)
    context = Context("e", 0, "cpu", dtype, 1, weights_dir / "cache", progress)
    STAGE.run(configure(weights_dir, **changes), inputs, output, context)
    return output
