"""The training loop on random weights; fault numbers are those of the usual example scripts."""

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
from pipeline.errors import TrainingError
from pipeline.run import manifest
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.finetune import optimizers
from stages.finetune.adapters.kohya import KOHYA_FILE
from stages.finetune.trainer import Trainer
from stages.finetune.training_set import draw_step
from tests.stages.finetune.conftest import killed_after

Train = Callable[..., ArtifactWriter[CheckpointRecord]]


def adapter(output: ArtifactWriter[CheckpointRecord]) -> dict[str, torch.Tensor]:
    return load_file(output.root / ADAPTER_FILE)


def log(output: ArtifactWriter[CheckpointRecord]) -> list[dict[str, Any]]:
    lines = (output.root / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


Step = Callable[[torch.optim.AdamW], None]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that has others called before and after every step of AdamW."""
    original = torch.optim.AdamW.step

    def watch(before: Step = lambda optimizer: None, after: Step = lambda optimizer: None) -> None:
        def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
            before(self)
            result = original(self, *args, **kwargs)
            after(self)
            return result

        monkeypatch.setattr(torch.optim.AdamW, "step", step)

    return watch


def gradients(optimizer: torch.optim.AdamW) -> torch.Tensor:
    """Return all gradients that a step is about to take, in one row."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


@pytest.mark.parametrize("accumulation", [1, 8])
def test_schedule_and_steps_do_not_depend_on_accumulation(
    train: Train, at_step: Callable[..., None], accumulation: int
) -> None:
    # Fault 1: schedules stretched by the accumulation never leave the warm-up.
    taken: list[float] = []  # the rate of every step that AdamW really takes
    at_step(before=lambda optimizer: taken.append(optimizer.param_groups[0]["lr"]))
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


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    train: Train, at_step: Callable[..., None], sampling: str
) -> None:
    found: list[torch.Tensor] = []
    at_step(before=lambda optimizer: found.append(gradients(optimizer)))
    logs = [
        log(
            train(
                f"b{size}",
                batch_size=size,
                gradient_accumulation_steps=8 // size,
                timestep_sampling=sampling,
                max_grad_norm=1e9,
                max_steps=1,
            )
        )
        for size in (8, 2)
    ]
    # Float32 sums in another order: 1e-5 of the largest gradient.
    scale = float(found[0].abs().max())
    torch.testing.assert_close(found[0] / scale, found[1] / scale, atol=1e-5, rtol=0)
    assert logs[0][1]["loss"] == pytest.approx(logs[1][1]["loss"], rel=1e-5)
    # Fault 2: the norm that is reported is the norm of what was there.
    assert logs[0][1]["grad_norm"] == pytest.approx(float(found[0].norm()), rel=1e-5)
    assert logs[0][1]["grad_norm"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "sd15"},
        pytest.param(
            {
                "optimizer": "schedule_free",
                "lr_schedule": "constant",
                "select_by": "held_out_loss",
                "timestep_sampling": "stratified",
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"optimizer": "prodigy", "learning_rate": 1.0, "ema_decay": 0.9, "mirror": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"model": "sdxl", "train_text_encoder": True, "optimizer": "adamw_8bit"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["sd15", "schedule-free-best", "prodigy-average", "sdxl-text-8bit"],
)
def test_killed_run_resumes_to_the_same_bytes(train: Train, changes: dict[str, Any]) -> None:
    # Fault 4: scripts restart the epoch and draw other noise.
    whole = train("whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        train("killed", progress=killed_after(3), **changes)
    resumed = train("killed", **changes)

    names = [ADAPTER_FILE, f"checkpoints/step-000004/{ADAPTER_FILE}", KOHYA_FILE]
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
    files = [name for name in manifest.list_files(output.root) if name.endswith(".safetensors")]
    kept = [f"checkpoints/step-{step:06d}/{ADAPTER_FILE}" for step in (6, 8)]
    assert files == [*kept, KOHYA_FILE, ADAPTER_FILE]
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
        "captions_empty": 0,
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
    train: Train, at_step: Callable[..., None]
) -> None:
    # Fault 3: updates of a bfloat16 adapter vanish.
    seen: set[torch.dtype] = set()

    def note(optimizer: torch.optim.AdamW) -> None:
        for parameter, state in optimizer.state.items():
            seen.update({parameter.dtype, parameter.grad.dtype, state["exp_avg"].dtype})

    at_step(after=note)
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
    assert optimizers.learning_rates(config, config.warmup_steps) == [1e-4, 1e-5]
    alone = FinetuneConfig(learning_rate=1e-4)
    assert optimizers.learning_rates(alone, alone.warmup_steps) == [1e-4]


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
    train: Train, at_step: Callable[..., None], tmp_path: Path
) -> None:
    def spoil(optimizer: torch.optim.AdamW) -> None:
        (state, *_) = optimizer.state.values()
        if state["step"] == 3:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.data.fill_(torch.nan)

    at_step(after=spoil)
    with pytest.raises(TrainingError, match="step 4: loss nan and gradient norm nan"):
        train(max_steps=6)
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-000002" / ADAPTER_FILE)
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert len(log(ArtifactWriter(tmp_path / "run", CheckpointRecord))) == 4  # steps 0 to 3


@pytest.mark.parametrize("accumulation", [1, 8])
def test_values_at_named_steps(
    build_trainer: Callable[..., Trainer], at_step: Callable[..., None], accumulation: int
) -> None:
    """Rate, effective batch, norm, SNR weights and dtypes, whatever the accumulation."""
    changes = {
        "batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 3,
    }
    trainer = build_trainer(max_grad_norm=1e-3, **changes)
    whole: dict[int, torch.Tensor] = {}  # gradients before they are clipped
    for number, parameter in enumerate(trainer.parameters):
        parameter.register_post_accumulate_grad_hook(
            lambda p, number=number: whole.update({number: p.grad.detach().clone()})
        )
    clipped: list[float] = []
    at_step(before=lambda optimizer: clipped.append(float(gradients(optimizer).norm())))
    assert trainer.effective_batch == 8
    rates = []
    for step in (1, 2, 3):
        _, norm = trainer.optimise(step)
        rates.append(trainer.rate)
        assert {g.dtype for g in whole.values()} == {torch.float32}
        squares = torch.stack([g.double().square().sum() for g in whole.values()])
        assert norm == pytest.approx(float(squares.sum().sqrt()), rel=1e-5)
    assert rates == pytest.approx([5e-4, 1e-3, 0.0], abs=1e-12)
    assert len(clipped) == 3 and max(clipped) <= 1e-3 + 1e-5
    assert {p.dtype for p in trainer.parameters} == {torch.float32}


def test_losses_are_weighed_by_the_snr_of_their_timesteps(
    build_trainer: Callable[..., Trainer],
) -> None:
    trainer = build_trainer()
    plain = replace(trainer, config=trainer.config.model_copy(update={"loss_weighting": "none"}))
    batch = draw_step(
        trainer.train, seed=0, step=1, effective_batch=64, num_timesteps=1000, caption_dropout=0.1
    )
    timesteps = [draw.timestep for draw in batch.draws]
    kept = trainer.base.noise_scheduler.alphas_cumprod[timesteps].double()
    expected = torch.clamp(5 * (1 - kept) / kept, max=1.0)  # min(SNR, 5) / SNR
    assert expected.min() < 0.9 < expected.max()
    with torch.no_grad():
        weighed, even = (one.compute_losses(one.train, batch) for one in (trainer, plain))
    assert (weighed / even).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
