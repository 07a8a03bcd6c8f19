"""Kinds of adapters, selection, trackers, mirroring; and what goes wrong."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.contracts import ArtifactWriter, CheckpointRecord
from pipeline.errors import PipelineError, TrainingError
from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.components.imaging.pixels import save_png
from stages.finetune import trainer, training_set
from stages.finetune.adapters.kohya import KOHYA_FILE
from stages.finetune.stage import FinetuneInputs

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


def test_best_state_is_the_result(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([9.0, 3.0, 1.0, 2.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(trainer.Trainer, "compute_held_out_loss", lambda run: next(losses))
    output = train(select_by="held_out_loss", validate_every=1, keep_checkpoints=9)
    assert output.notes["result_step"] == 2
    best = (output.root / "checkpoints/step-000002" / ADAPTER_FILE).read_bytes()
    assert (output.root / ADAPTER_FILE).read_bytes() == best
    assert output.notes["selection"] == {
        "selected_by": "held_out_loss",
        "step": 2,
        "measure": "held_out_loss",
        "curve": {"1": 3.0, "2": 1.0, "3": 2.0, "4": 5.0, "5": 6.0, "6": 7.0},
    }
    assert not (output.root / "best").exists()
    rows = [json.loads(s) for s in (output.root / "records.jsonl").read_text().splitlines()]
    assert (rows[-1]["step"], rows[-1]["path"], rows[-1]["held_out_loss"]) == (2, ".", 1.0)
    assert "held-out loss of this adapter (step 2): 1.00000" in (
        output.root / "README.md"
    ).read_text(encoding="utf-8")


def test_training_stops_when_patience_ends(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([9.0, 3.0, 1.0, 2.0, 5.0])
    monkeypatch.setattr(trainer.Trainer, "compute_held_out_loss", lambda run: next(losses))
    output = train(early_stop_patience=2, validate_every=1, max_steps=30)
    assert output.notes["optimizer_steps"] == 4
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
    original = trainer.Trainer.optimise

    def fail(run: trainer.Trainer, step: int) -> tuple[float, float]:
        if step == 3:
            raise error
        return original(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "optimise", fail)
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


def test_another_fault_is_passed_on(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: trainer.Trainer, step: int) -> tuple[float, float]:
        raise ValueError("something else")

    monkeypatch.setattr(trainer.Trainer, "optimise", fail)
    with pytest.raises(ValueError, match="something else"):
        train()


def test_one_slice_trains_with_a_warning(
    train: Train, inputs: FinetuneInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training_set.read_samples
    monkeypatch.setattr(training_set, "read_samples", lambda *args: original(*args)[:1])
    output = train(max_steps=2)
    assert output.notes["warnings"] == [
        "there is one training slice only, 's0': the adapter will repeat it"
    ]


def test_mirrored_slices_are_told_with_the_other_side(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: set[str] = set()
    original = trainer.Trainer.optimise

    def keep(run: trainer.Trainer, step: int) -> tuple[float, float]:
        latents = run.train.latents
        assert latents.mean.shape[1] == 4
        for row, sample in enumerate(run.train.samples):
            told.update(f"{crop} {run.train.caption(row, crop)}" for crop in range(4))
            is_same = torch.equal(latents.mean[row, 0], latents.mean[row, 2])
            assert is_same == (sample.mirrored_text is None)
        return original(run, step)

    monkeypatch.setattr(trainer.Trainer, "optimise", keep)
    train(mirror=True, crops_per_image=2, max_steps=1)
    assert "0 tumor: yes; location: left; size: small" in told
    assert "2 tumor: yes; location: right; size: small" in told
    assert "2 tumor: yes; size: large" in told  # of an unknown plane: as it is


@pytest.fixture
def mask_path(tmp_path: Path) -> Path:
    """Write a mask of one cell of a latent."""
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 24:32] = 2
    save_png(tmp_path / "mask.png", mask)
    return tmp_path / "mask.png"


def change_samples(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Have training read samples that differ from the artifact's."""
    original = training_set.read_samples
    monkeypatch.setattr(
        training_set, "read_samples", lambda *args: [replace(s, **changes) for s in original(*args)]
    )


def test_lesions_count_more_where_masks_show_them(
    train: Train, mask_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor | None] = []

    def keep(run: trainer.Trainer, step: int) -> tuple[float, float]:
        seen.append(run.train.lesions)
        assert run.held_out.lesions is None  # so that arms can be compared
        return optimise(run, step)

    optimise = trainer.Trainer.optimise
    change_samples(monkeypatch, mask_path=mask_path)
    monkeypatch.setattr(trainer.Trainer, "optimise", keep)
    outputs = [
        train(f"weight {weight}", lesion_weight=weight, mirror=True, max_steps=1)
        for weight in (1.0, 20.0)
    ]
    losses = [log(output)[1]["loss"] for output in outputs]
    assert losses[1] > 1.5 * losses[0]
    assert seen[0] is None
    assert seen[1] is not None
    lesions = seen[1]
    assert lesions.shape == (5, 2, 4, 4)
    assert lesions[:, 0].sum(0)[1, 3] == 5  # of the slice as it is, and nowhere else
    assert lesions[:, 0].sum() == 5
    places = [lesion.nonzero().tolist() for lesion in lesions[:, 1]]
    assert places.count([[1, 0]]) == 3  # the axial ones are mirrored
    assert places.count([[1, 3]]) == 2


def test_place_words_attend_to_the_lesion_where_grounding_is_asked_for(
    train: Train, mask_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_samples(monkeypatch, mask_path=mask_path, text="tumor: yes; location: left")
    losses = [
        log(train(f"grounding {weight}", grounding_weight=weight, max_steps=1))[1]["loss"]
        for weight in (0.0, 0.5, 1.0)
    ]
    assert losses[1] > losses[0] + 0.1
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)


def test_weights_of_lesions_without_any_mask_are_refused(train: Train) -> None:
    needs = r"finetune\.lesion_weight and finetune\.grounding_weight need slices with"
    for settings in ({"lesion_weight": 5.0}, {"grounding_weight": 0.1}):
        with pytest.raises(TrainingError, match=needs):
            train(**settings)


def test_mirroring_without_a_known_plane_is_said(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training_set.read_samples
    monkeypatch.setattr(
        training_set,
        "read_samples",
        lambda *args: [replace(s, mirrored_text=None) for s in original(*args)],
    )
    output = train(mirror=True, max_steps=1)
    assert output.notes["optimizer_steps"] == 1
