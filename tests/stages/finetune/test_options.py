"""Kinds of adapters, selection, trackers, mirroring; and what goes wrong."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.contracts import ArtifactWriter, CheckpointRecord
from pipeline.errors import PipelineError, TrainingError
from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.finetune.adapters.kohya import KOHYA_FILE
from stages.finetune.trainer import Trainer
from tests.stages.finetune.conftest import SPLITS, build_inputs

Train = Callable[..., ArtifactWriter[CheckpointRecord]]


def adapter(output: ArtifactWriter[CheckpointRecord]) -> dict[str, torch.Tensor]:
    return load_file(output.root / ADAPTER_FILE)


def log(output: ArtifactWriter[CheckpointRecord]) -> list[dict[str, Any]]:
    lines = (output.root / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("kind", "preset"), [("rslora", "all_linear"), ("dora", "wider"), ("dora", "all_linear")]
)
def test_kinds_and_places_of_adapters_train(train: Train, kind: str, preset: str) -> None:
    output = train(adapter=kind, target_preset=preset, train_text_encoder=True, max_steps=2)
    assert np.isfinite(log(output)[-1]["held_out_loss"])
    names = load_file(output.root / ADAPTER_FILE)
    assert any("lora_magnitude_vector" in name for name in names) == (kind == "dora")
    assert any(".conv1." in name for name in names) == (preset == "wider")
    assert any(".mlp.fc1." in name for name in names)
    assert (output.root / KOHYA_FILE).exists() == (kind != "dora")


@pytest.mark.parametrize("weighting", ["debiased", "none"])
def test_other_weightings_change_the_loss(train: Train, weighting: str) -> None:
    rows = [
        log(train(name, loss_weighting=name, min_snr_gamma=0.1, max_steps=1))[1]
        for name in ("min_snr", weighting)
    ]
    assert rows[0]["loss"] != pytest.approx(rows[1]["loss"], rel=1e-3)


def test_four_bit_base_trains_with_a_loss_near_the_whole_one(train: Train) -> None:
    losses = [
        log(train(name, model="sdxl", quantize_base=is_on, max_steps=2))[-1]["held_out_loss"]
        for name, is_on in (("whole", False), ("packed", True))
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_are_those_that_repeat_and_change_nothing(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    compiled: list[str] = []

    def compile_eagerly(unet: torch.nn.Module) -> None:
        for module in unet.modules():
            if type(module).__name__ in unet._repeated_blocks:
                compiled.append(type(module).__name__)
                module.compile(backend="eager")

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "compile_repeated_blocks", compile_eagerly)
    rows = [
        log(train(name, compile_blocks=is_on, max_steps=1))[1]
        for name, is_on in (("off", False), ("on", True))
    ]
    assert set(compiled) == {"BasicTransformerBlock"}
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)


def test_best_state_is_the_result(train: Train) -> None:
    # At so high a rate the last step is one too many.
    output = train(
        select_by="held_out_loss",
        validate_every=1,
        keep_checkpoints=9,
        checkpoint_every=1,
        learning_rate=0.1,
        lr_schedule="constant",
        warmup_steps=1,
        batch_size=4,
    )
    curve = {row["step"]: row["held_out_loss"] for row in log(output)[1:]}
    step = min(curve, key=curve.__getitem__)
    assert 1 < step < 6
    assert output.notes["result_step"] == step
    best = (output.root / f"checkpoints/step-{step:06d}" / ADAPTER_FILE).read_bytes()
    assert (output.root / ADAPTER_FILE).read_bytes() == best
    assert output.notes["selection"] == {
        "selected_by": "held_out_loss",
        "step": step,
        "measure": "held_out_loss",
        "curve": {str(step): loss for step, loss in curve.items()},
    }
    assert not (output.root / "best").exists()
    rows = [json.loads(s) for s in (output.root / "records.jsonl").read_text().splitlines()]
    assert (rows[-1]["step"], rows[-1]["path"]) == (step, ".")
    assert rows[-1]["held_out_loss"] == curve[step]
    assert f"held-out loss of this adapter (step {step}): {curve[step]:.5f}" in (
        output.root / "README.md"
    ).read_text(encoding="utf-8")


def test_training_stops_when_patience_ends(train: Train) -> None:
    # Nothing moves at such a rate: no loss is less than the first one.
    output = train(early_stop_patience=2, validate_every=1, max_steps=30, learning_rate=1e-30)
    assert output.notes["optimizer_steps"] == 3
    assert output.notes["stopped_early"] is True


def test_averaged_adapter_is_the_result(train: Train) -> None:
    changes = {"max_steps": 4, "checkpoint_every": 100}
    plain, averaged = (
        adapter(train(name, **changes, **more))
        for name, more in (("plain", {}), ("averaged", {"ema_decay": 0.999}))
    )
    moved = [name for name in plain if "lora_B" in name]
    shorter = sum(float(averaged[n].norm()) < float(plain[n].norm()) for n in moved)
    assert shorter == len(moved)  # B starts at zero, and its average lags behind


def test_tensorboard_files_hold_the_numbers_of_the_log(train: Train) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = train(max_steps=3)
    events = EventAccumulator(str(output.root / "tensorboard"))
    events.Reload()
    rows = log(output)[1:]
    for name, key in (("train/loss", "loss"), ("train/gradient_norm", "grad_norm")):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows]
    assert len(events.Scalars("speed/images_per_second")) == 3
    assert not (train("off", max_steps=1, trackers=()).root / "tensorboard").exists()


def test_missing_package_is_named_before_anything_is_loaded(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    with pytest.raises(TrainingError, match=r"'wandb' needs the package wandb.*mrisynth\[track\]"):
        train(trackers=("tensorboard", "wandb"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "step 3: the disk is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "step 3: memory does not"),
        (torch.OutOfMemoryError("CUDA out of memory."), "gradient_checkpointing"),
    ],
)
def test_full_disk_and_full_memory_name_the_step_and_lose_no_checkpoint(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, words: str
) -> None:
    with monkeypatch.context() as patch:
        fail_at_step(patch, 3, error)
        with pytest.raises(PipelineError, match=words):
            train(max_steps=4)
    assert (tmp_path / "run/checkpoints/step-000002" / ADAPTER_FILE).is_file()
    assert train(max_steps=4).notes["optimizer_steps"] == 4


def test_side_products_that_fail_are_warnings(train: Train, tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    for name in ("kohya", "samples", "tensorboard"):
        (root / name).touch()  # in the place of a folder
    output = train(max_steps=3, sample_every=1, sample_steps=1)
    names = [line.partition(" is left out, ")[0] for line in output.notes["warnings"]]
    assert names == ["tensorboard", "samples", KOHYA_FILE]
    assert (root / ADAPTER_FILE).is_file()
    assert "kohya" not in (root / "README.md").read_text()
    assert output.notes["optimizer_steps"] == 3


def test_layers_outside_of_sdxl_s_blocks_end_no_training(train: Train) -> None:
    output = train(model="sdxl", target_modules=("to_q", "conv_out"), max_steps=1)
    assert (output.root / ADAPTER_FILE).is_file()
    assert "lora_unet_out_2.alpha" in load_file(output.root / KOHYA_FILE)


def fail_at_step(patch: pytest.MonkeyPatch, number: int, error: Exception) -> None:
    """Let AdamW's step of that number raise."""
    original, taken = torch.optim.AdamW.step, []

    def step(self: torch.optim.AdamW, *args: Any, **given: Any) -> Any:
        taken.append(self)
        if len(taken) == number:
            raise error
        return original(self, *args, **given)

    patch.setattr(torch.optim.AdamW, "step", step)


def test_another_fault_is_passed_on(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at_step(monkeypatch, 1, ValueError("something else"))
    with pytest.raises(ValueError, match="something else"):
        train()


def test_one_slice_trains_with_a_warning(train: Train, tmp_path: Path) -> None:
    output = train(given=build_inputs(tmp_path, ("train", "val", "val")), max_steps=2)
    assert output.notes["warnings"] == [
        "there is one training slice only, 's0': the adapter will repeat it"
    ]


def test_mirrored_slices_are_told_with_the_other_side(
    build_trainer: Callable[..., Trainer],
) -> None:
    data = build_trainer(mirror=True, crops_per_image=2).train
    assert data.latents.mean.shape[1] == 4
    told = set()
    for row, sample in enumerate(data.samples):
        told.update(f"{crop} {data.caption(row, crop)}" for crop in range(4))
        is_same = torch.equal(data.latents.mean[row, 0], data.latents.mean[row, 2])
        assert is_same == (sample.mirrored_text is None)
    assert "0 tumor: yes; location: left; size: small" in told
    assert "2 tumor: yes; location: right; size: small" in told
    assert "2 tumor: yes; size: large" in told  # of an unknown plane: as it is


MASK = np.zeros((32, 32), np.uint8)  # of one cell of a latent
MASK[8:16, 24:32] = 2


def test_lesions_count_more_where_masks_show_them(
    build_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    given = build_inputs(tmp_path, SPLITS, mask=MASK)
    even, weighed = (
        build_trainer(given, lesion_weight=weight, mirror=True) for weight in (1.0, 20.0)
    )
    assert weighed.optimise(1)[0] > 1.5 * even.optimise(1)[0]
    assert even.train.lesions is even.held_out.lesions is weighed.held_out.lesions is None
    lesions = weighed.train.lesions
    assert lesions is not None
    assert lesions.shape == (5, 2, 4, 4)
    assert lesions[:, 0].sum(0)[1, 3] == 5  # of the slice as it is, and nowhere else
    assert lesions[:, 0].sum() == 5
    places = [lesion.nonzero().tolist() for lesion in lesions[:, 1]]
    assert places.count([[1, 0]]) == 3  # the axial ones are mirrored
    assert places.count([[1, 3]]) == 2


def test_place_words_attend_to_the_lesion_where_grounding_is_asked_for(
    build_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    given = build_inputs(
        tmp_path, SPLITS, mask=MASK, captions_in_turn=["tumor: yes; location: left"]
    )
    losses = [
        build_trainer(given, grounding_weight=weight).optimise(1)[0] for weight in (0.0, 0.5, 1.0)
    ]
    assert losses[1] > losses[0] + 0.1
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)


def test_weights_of_lesions_without_any_mask_are_refused(train: Train) -> None:
    needs = r"finetune\.lesion_weight and finetune\.grounding_weight need slices with"
    for settings in ({"lesion_weight": 5.0}, {"grounding_weight": 0.1}):
        with pytest.raises(TrainingError, match=needs):
            train(**settings)


def test_mirroring_without_a_known_plane_is_said(train: Train, tmp_path: Path) -> None:
    lines: list[str] = []
    given = build_inputs(tmp_path, SPLITS, planes=["unknown"])
    output = train(given=given, mirror=True, max_steps=1, progress=lines.append)
    assert "finetune: no slice is known to be axial or coronal, so none is mirrored" in lines
    assert output.notes["optimizer_steps"] == 1
