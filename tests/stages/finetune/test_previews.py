"""CaptionedSlice grids while training, and selection by KID; on random weights and noise."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.contracts import ArtifactWriter, CheckpointRecord
from pipeline.errors import SampleSizeError
from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.components.statistics import kernel_distance
from stages.finetune import kid_selection, preview
from stages.finetune.stage import FinetuneInputs
from stages.finetune.training_set import CaptionedSlice
from tests.stages.finetune.conftest import build_inputs, killed_after

Train = Callable[..., ArtifactWriter[CheckpointRecord]]
GRID = {"sample_every": 2, "sample_steps": 2, "sample_guidance": 2.0, "max_steps": 4}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> FinetuneInputs:
    """As the others, with nine validation slices of two classes; odd ones name no plane."""
    root = tmp_path_factory.mktemp("inputs")
    return build_inputs(root, [*("train",) * 4, *("val",) * 9], ("notumor", "glioma", "glioma"))


def sample(name: str, label: Any, orientation: Any) -> CaptionedSlice:
    return CaptionedSlice(name, Path("p"), f"text {name}", None, label, orientation)


def test_one_slice_of_every_class_and_plane_is_picked_in_the_grid_s_order() -> None:
    samples = [
        sample("a", "glioma", "coronal"),
        sample("b", "glioma", "axial"),
        sample("c", "notumor", "axial"),
        sample("d", "glioma", "axial"),
        sample("e", None, "axial"),
    ]
    chosen = preview.pick_views(samples)
    assert [s.slice_id for s in chosen] == ["c", "b", "a"]
    images = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (1, 2, 3)])
    grid = preview.draw_grid(images, chosen)
    assert grid[::2, ::2, 0].tolist() == [[1, 2], [0, 3]]  # rows: axial, coronal; no coronal c
    assert grid.shape == (4, 4, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "sd15", "ema_decay": 0.9},
        {"model": "sdxl", "train_text_encoder": True, "gradient_checkpointing": True},
        {"model": "sdxl", "method": "textual_inversion"},
    ],
    ids=["average", "text-encoders", "inversion"],
)
def test_grids_change_nothing_of_the_training(train: Train, changes: dict[str, Any]) -> None:
    plain = train("plain", **(GRID | changes | {"sample_every": 0}))
    watched = train("watched", **(GRID | changes))
    grids = sorted(path.name for path in (watched.root / preview.FOLDER).iterdir())
    assert grids == ["step-000002.png", "step-000004.png"]
    names = {path.name for path in plain.root.glob("*.safetensors")}
    assert len(names) == 1
    for name in names:
        assert (plain.root / name).read_bytes() == (watched.root / name).read_bytes()
    assert not (plain.root / preview.FOLDER).exists()


def test_a_grid_leaves_modes_and_random_states_as_they_were(
    prepare_training: Callable[..., Any], tmp_path: Path
) -> None:
    trainer, grid, _ = prepare_training(train_text_encoder=True, **GRID)
    modules = [trainer.base.unet, trainer.base.vae, *trainer.base.text_encoders]
    modes = [part.training for part in modules]
    assert len(set(modes)) == 2
    torch.rand(1)
    state = torch.get_rng_state()
    preview.write_grid(trainer, grid, tmp_path, 2)
    assert torch.equal(state, torch.get_rng_state())
    assert [part.training for part in modules] == modes


def test_grids_are_marked_shown_and_the_same_after_a_kill(
    train: Train,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = GRID | {"learning_rate": 0.1}
    whole = train("whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        train("killed", progress=killed_after(3), **changes)
    resumed = train("killed", **changes)
    names = sorted(path.name for path in (whole.root / preview.FOLDER).iterdir())
    assert names == ["step-000002.png", "step-000004.png"]
    files = [
        [(run.root / preview.FOLDER / name).read_bytes() for name in names]
        for run in (whole, resumed)
    ]
    assert files[0] == files[1]
    grids = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in files[0]]
    assert (grids[0] != grids[1]).any()  # the model has moved on
    with Image.open(io.BytesIO(files[0][1])) as opened:
        assert opened.size == (64, 64)  # two classes by axial and unknown, 32 px each
        assert opened.info["synthetic"] == "true" and opened.info["step"] == "4"
        assert len(json.loads(opened.info["prompts"])) == 4
    events = EventAccumulator(str(resumed.root / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("samples")] == [2, 4]


def test_the_state_of_least_kid_is_the_result(train: Train) -> None:
    # At so high a rate the last steps are too many.
    output = train(
        select_by="kid",
        select_images=8,
        sample_steps=1,
        validate_every=2,
        checkpoint_every=2,
        keep_checkpoints=9,
        learning_rate=0.3,
        lr_schedule="constant",
        warmup_steps=1,
    )
    curve = output.notes["selection"]["curve"]
    assert set(curve) == {"2", "4", "6"}
    step = int(min(curve, key=curve.__getitem__))
    assert step < 6
    selection = {"selected_by": "kid", "step": step, "measure": "kid", "curve": curve}
    assert output.notes["selection"] == selection
    best = (output.root / f"checkpoints/step-{step:06d}" / ADAPTER_FILE).read_bytes()
    assert (output.root / ADAPTER_FILE).read_bytes() == best
    kid = f"KID on validation slices: {curve[str(step)]:.5f}"
    assert kid in (output.root / "README.md").read_text("utf-8")


def test_kid_is_that_of_the_model_s_images(prepare_training: Callable[..., Any]) -> None:
    trainer, _, probe = prepare_training(select_by="kid", select_images=8, sample_steps=1)
    assert probe.real.shape == (9, 1280)
    images = preview.sample_images(trainer, probe.preview)
    assert images.shape == (8, 32, 32, 3)
    kid = kernel_distance.compute(
        real=probe.real, synthetic=probe.extractor(images).astype(np.float64)
    )
    assert kid_selection.compute_kid(trainer, probe) == pytest.approx(kid, rel=1e-6)
    assert kid > 0.01  # decoded noise is not the slices'


def test_training_stops_when_kid_grows(train: Train) -> None:
    output = train(
        select_by="kid",
        select_images=8,
        sample_steps=1,
        validate_every=1,
        early_stop_patience=1,
        learning_rate=0.1,
        lr_schedule="constant",
        warmup_steps=1,
    )
    assert output.notes["optimizer_steps"] == 2
    assert output.notes["stopped_early"] is True
    assert output.notes["result_step"] == 1


def test_too_few_validation_slices_are_refused_before_anything_is_loaded(train: Train) -> None:
    with pytest.raises(SampleSizeError, match=r"samples 48 images .* but there are 9; raise"):
        train(select_by="kid", model="sdxl")
