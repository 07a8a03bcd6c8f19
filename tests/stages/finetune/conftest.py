"""Slices, captions and random weights for trainings of a second or two."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    CheckpointRecord,
    Context,
    Label,
    PluginConfig,
    SliceRecord,
    Split,
    write_records,
)
from pipeline.settings import FinetuneConfig
from stages.components.imaging.pixels import save_png, to_rgb
from stages.finetune.stage import STAGE, FinetuneInputs
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
    root: Path, splits: Sequence[Split], labels: Sequence[Label] = ("glioma",)
) -> FinetuneInputs:
    """Write slices of the splits, labels in turn, and one more whose caption failed."""
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
                orientation="unknown" if number % 2 else "axial",
                image_path=f"{name}.png",
                original=name,
                original_width_px=32,
                original_height_px=32,
            )
        )
        failed = number == len(splits)
        captions.append(
            CaptionRecord(
                file_name=f"{name}.png",
                text="" if failed else CAPTIONS[number % 2],
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


def make(
    root: Path,
    weights_dir: Path,
    inputs: FinetuneInputs,
    model: str = "sd15",
    dtype: str = "float32",
    progress: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> ArtifactWriter[CheckpointRecord]:
    """Train on random weights; a `progress` that raises kills the training between two steps."""
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
    output = ArtifactWriter(root, CheckpointRecord)
    output.root.mkdir(exist_ok=True)
    context = Context("e", 0, "cpu", dtype, 1, weights_dir / "cache", progress)
    STAGE.run(FinetuneConfig(**(given | changes)), inputs, output, context)
    return output
