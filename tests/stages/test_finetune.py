"""The training loop on random weights; fault numbers are those of the usual example scripts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    CheckpointRecord,
    Context,
    PluginConfig,
    SliceRecord,
    Split,
    write_records,
)
from pipeline.errors import TrainingError
from pipeline.settings import FinetuneConfig
from stages import finetune
from stages.components import training
from stages.components.diffusion import ADAPTER_FILE
from stages.components.imaging import save_png, to_rgb
from stages.finetune import STAGE, FinetuneInputs

SPLITS: tuple[Split, ...] = (*("train",) * 5, *("val",) * 3)
Train = Callable[..., ArtifactWriter[CheckpointRecord]]


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> FinetuneInputs:
    """Five captioned training slices, three for validation, and one whose caption failed."""
    root = tmp_path_factory.mktemp("inputs")
    slices, captions = [], []
    for number, split in enumerate([*SPLITS, "train"]):
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
                label="glioma",
                image_path=f"{name}.png",
                original=name,
                original_width_px=32,
                original_height_px=32,
            )
        )
        failed = number == len(SPLITS)
        captions.append(
            CaptionRecord(
                file_name=f"{name}.png",
                text="" if failed else f"tumor: yes; size: {['small', 'large'][number % 2]}",
                slice_id=name,
                label="glioma",
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
    def run(
        name: str = "run", model: str = "sd15", dtype: str = "float32", **changes: Any
    ) -> ArtifactWriter[CheckpointRecord]:
        settings = registry.find(registry.BASE_MODELS, model).tiny(weights_dir)
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
        output = ArtifactWriter(tmp_path / name, CheckpointRecord)
        output.root.mkdir(exist_ok=True)
        context = Context("e", 0, "cpu", dtype, 1, weights_dir / "cache", lambda line: None)
        STAGE.run(FinetuneConfig(**(given | changes)), inputs, output, context)
        return output

    return run


def adapter(output: ArtifactWriter[CheckpointRecord]) -> dict[str, torch.Tensor]:
    return load_file(output.root / ADAPTER_FILE)


def log(output: ArtifactWriter[CheckpointRecord]) -> list[dict[str, Any]]:
    lines = (output.root / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the rate of every step that AdamW really takes."""
    rates: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return rates


@pytest.mark.parametrize("accumulation", [1, 8])
def test_schedule_and_steps_do_not_depend_on_accumulation(
    train: Train, taken: list[float], accumulation: int
) -> None:
    # Fault 1: schedules stretched by the accumulation never leave the warm-up.
    output = train(
        batch_size=1,
        gradient_accumulation_steps=accumulation,
        warmup_steps=3,
        max_steps=7,
        learning_rate=1e-4,
        checkpoint_every=100,
    )
    expected = [1e-4 / 3, 2e-4 / 3, 1e-4]
    expected += [5e-5 * (1 + np.cos(np.pi * k / 4)) for k in (1, 2, 3, 4)]
    assert taken == pytest.approx(expected, abs=1e-12)
    assert [row["lr"] for row in log(output)[1:]] == pytest.approx(expected, abs=1e-12)
    assert output.notes["images_seen"] == 7 * accumulation


def test_accumulated_gradients_are_those_of_the_whole_batch(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[torch.Tensor] = []

    def collect(parameters: list[torch.nn.Parameter], max_norm: float) -> float:
        grads = [p.grad.flatten().clone() for p in parameters if p.grad is not None]
        found.append(torch.cat(grads))
        return training.clip_gradients(parameters, max_norm)

    monkeypatch.setattr(finetune, "clip_gradients", collect)
    logs = [
        log(train(f"b{size}", batch_size=size, gradient_accumulation_steps=8 // size, max_steps=1))
        for size in (8, 2)
    ]
    # Float32 sums in another order: 1e-5 of the largest gradient.
    scale = float(found[0].abs().max())
    torch.testing.assert_close(found[0] / scale, found[1] / scale, atol=1e-5, rtol=0)
    assert logs[0][1]["loss"] == pytest.approx(logs[1][1]["loss"], rel=1e-5)
    # Fault 2: the norm that is reported is the norm of what was there.
    assert logs[0][1]["grad_norm"] == pytest.approx(float(found[0].norm()), rel=1e-5)
    assert logs[0][1]["grad_norm"] > 0


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "sd15"},
        pytest.param(
            {"model": "sdxl", "train_text_encoder": True, "optimizer": "adamw_8bit"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["sd15", "sdxl-text-8bit"],
)
def test_killed_run_resumes_to_the_same_bytes(
    train: Train, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    # Fault 4: scripts restart the epoch and draw other noise.
    whole = train("whole", **changes)
    original = finetune.optimise

    def die(trainer: finetune.Trainer, step: int) -> tuple[float, float]:
        if step == 4:
            raise Killed
        return original(trainer, step)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "optimise", die)
        with pytest.raises(Killed):
            train("killed", **changes)
    resumed = train("killed", **changes)

    names = [ADAPTER_FILE, f"checkpoints/step-000004/{ADAPTER_FILE}"]
    for name in names:
        assert (resumed.root / name).read_bytes() == (whole.root / name).read_bytes()
    for row, other in zip(log(whole), log(resumed), strict=True):
        assert row | {"seconds": 0} == other | {"seconds": 0}
    assert resumed.notes["held_out_loss"] == whole.notes["held_out_loss"]


def test_training_lowers_the_held_out_loss(train: Train) -> None:
    output = train(learning_rate=2e-2, max_steps=25, batch_size=4, checkpoint_every=100)
    held_out = output.notes["held_out_loss"]
    assert held_out["last"] < 0.98 * held_out["first"]


def test_artifact_holds_the_result_two_checkpoints_and_what_is_to_be_told(train: Train) -> None:
    output = train(max_steps=9)
    files = sorted(str(p.relative_to(output.root)) for p in output.root.rglob("*.safetensors"))
    kept = [f"checkpoints/step-{step:06d}/{ADAPTER_FILE}" for step in (6, 8)]
    assert files == [*kept, ADAPTER_FILE]
    rows = [json.loads(s) for s in (output.root / "records.jsonl").read_text().splitlines()]
    assert [(row["step"], row["path"]) for row in rows] == [
        (6, "checkpoints/step-000006"),
        (8, "checkpoints/step-000008"),
        (9, "."),
    ]
    assert output.counts == {
        "train": 5,
        "held_out": 3,
        "captions_failed": 1,
        "captions_cut": 0,
        "written": 3,
    }
    assert output.notes["trainable_parameters"]["unet"] == sum(
        tensor.numel() for tensor in adapter(output).values()
    )
    assert output.notes["effective_batch"] == 2
    assert [row["step"] for row in log(output) if row["held_out_loss"] is not None] == [
        *(0, 2, 4, 6, 8, 9)
    ]


def test_bfloat16_keeps_adapter_and_optimiser_in_float32(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fault 3: updates of a bfloat16 adapter vanish.
    seen: set[torch.dtype] = set()
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        done = original(self, *args, **kwargs)
        for parameter, state in self.state.items():
            seen.update({parameter.dtype, parameter.grad.dtype, state["exp_avg"].dtype})
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    output = train(dtype="bfloat16", model="sdxl", train_text_encoder=True, max_steps=2)
    assert seen == {torch.float32}
    assert all(t.dtype == torch.float32 for t in adapter(output).values())
    assert any(t.abs().max() > 0 for name, t in adapter(output).items() if "lora_B" in name)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_text_encoders_are_trained_when_asked(train: Train, model: str) -> None:
    output = train(
        model=model, train_text_encoder=True, text_encoder_rank=2, caption_dropout=0.0, max_steps=2
    )
    moved = {
        name.split(".")[0]
        for name, tensor in adapter(output).items()
        if "lora_B" in name and tensor.abs().max() > 0
    }
    encoders = {"text_encoder", "text_encoder_2"} if model == "sdxl" else {"text_encoder"}
    assert moved == {"unet"} | encoders
    assert set(output.notes["trainable_parameters"]) == moved


def test_text_encoders_have_a_rate_of_their_own() -> None:
    config = FinetuneConfig(
        train_text_encoder=True, learning_rate=1e-4, text_encoder_learning_rate=1e-5
    )
    assert finetune.learning_rates(config, config.warmup_steps) == [1e-4, 1e-5]
    alone = FinetuneConfig(learning_rate=1e-4)
    assert finetune.learning_rates(alone, alone.warmup_steps) == [1e-4]


def test_gradient_checkpointing_changes_no_gradient(train: Train) -> None:
    changes = {"model": "sdxl", "train_text_encoder": True, "max_steps": 1}
    rows = [
        log(train(name, gradient_checkpointing=is_on, **changes))[1]
        for name, is_on in (("off", False), ("on", True))
    ]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-6)
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-5)


def test_random_crops_train(train: Train) -> None:
    output = train(crops_per_image=3, max_steps=2, model="sdxl")
    assert np.isfinite(log(output)[-1]["loss"])


def test_nan_names_the_step_and_keeps_the_last_checkpoint(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original, calls = finetune.compute_losses, []

    def spoil(trainer: finetune.Trainer, data: Any, batch: Any) -> torch.Tensor:
        losses = original(trainer, data, batch)
        if data is trainer.train:
            calls.append(0)
        return losses * float("nan") if len(calls) == 4 else losses

    monkeypatch.setattr(finetune, "compute_losses", spoil)
    with pytest.raises(TrainingError, match="step 4: loss nan and gradient norm nan"):
        train(max_steps=6)
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-000002" / ADAPTER_FILE)
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert len(log(ArtifactWriter(tmp_path / "run", CheckpointRecord))) == 4  # steps 0 to 3
