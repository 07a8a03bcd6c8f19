import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import ArtifactError
from stages.finetune import checkpoints
from stages.finetune.adapters.lora import AdaptedModel
from stages.finetune.averaging import AdapterAverage, Trained
from stages.finetune.checkpoints import list_states, restore_newest, save_checkpoint, save_state
from stages.finetune.optimizers import build_optimizer


@pytest.fixture
def _plain_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export nothing: these networks have no peft adapter."""

    def save(models: object, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "pytorch_lora_weights.safetensors").write_bytes(b"")

    monkeypatch.setattr(checkpoints, "save_trained", save)


def build(name: str = "adamw", seed: int = 0) -> tuple[list[AdaptedModel], torch.optim.Optimizer]:
    torch.manual_seed(seed)
    models = [AdaptedModel("unet", nn.Linear(96, 96))]
    return models, build_optimizer(name, [(models[0].parameters(), 1e-2)], 0.01)


def step(models: list[AdaptedModel], optimizer: torch.optim.Optimizer, number: int) -> None:
    inputs = torch.randn(4, 96, generator=torch.Generator().manual_seed(number))
    models[0].module(inputs).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.usefixtures("_plain_export")
@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "prodigy", "schedule_free"])
def test_restored_training_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    models, optimizer = build(name)
    average = AdapterAverage(models, 0.9)
    for number in range(3):
        step(models, optimizer, number)
        average.update(number + 1)
    save_state(tmp_path, 3, 1.5, Trained(models, optimizer, average))
    for number in range(3, 6):
        step(models, optimizer, number)
        average.update(number + 1)

    others, second = build(name, seed=5)
    restored = AdapterAverage(others, 0.9)
    assert restore_newest(tmp_path, Trained(others, second, restored), print) == (3, 1.5)
    for number in range(3, 6):
        step(others, second, number)
        restored.update(number + 1)
    assert torch.equal(models[0].module.weight, others[0].module.weight)
    with Trained(models, optimizer).as_exported(), Trained(others, second).as_exported():
        assert torch.equal(models[0].module.weight, others[0].module.weight)
    name = "unet.weight"
    assert torch.equal(average.values[name], restored.values[name])
    assert not torch.equal(average.values[name], models[0].module.weight)


@pytest.mark.usefixtures("_plain_export")
def test_two_states_stay_and_as_many_checkpoints_as_asked(tmp_path: Path) -> None:
    models, optimizer = build()
    step(models, optimizer, 0)
    for number in (10, 20, 30):
        save_checkpoint(tmp_path, number, Trained(models, optimizer), keep=1)
        save_state(tmp_path, number, 0.0, Trained(models, optimizer))
    assert checkpoints.list_checkpoints(tmp_path) == [30]
    assert list_states(tmp_path) == [20, 30]


@pytest.mark.usefixtures("_plain_export")
def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    models, optimizer = build()
    assert restore_newest(tmp_path, Trained(models, optimizer), print) == (0, 0.0)
    (tmp_path / "checkpoints" / "step-000010.partial").mkdir(parents=True)
    assert checkpoints.list_checkpoints(tmp_path) == []
    save_checkpoint(tmp_path, 10, Trained(models, optimizer), keep=1)
    assert checkpoints.list_checkpoints(tmp_path) == [10]
    assert restore_newest(tmp_path, Trained(models, optimizer), print) == (0, 0.0)


def test_a_damaged_state_is_reported_and_the_one_before_is_taken(tmp_path: Path) -> None:
    models, optimizer = build()
    for number in (10, 20):
        step(models, optimizer, number)
        save_state(tmp_path, number, float(number), Trained(models, optimizer))
    newest = checkpoints.state_path(tmp_path, 20)
    for content in (newest.read_bytes()[:-4], b"", b"\0" * 64):
        newest.write_bytes(content)
        lines: list[str] = []
        others, second = build(seed=5)
        assert restore_newest(tmp_path, Trained(others, second), lines.append) == (10, 10.0)
        (line,) = lines
        assert line.startswith(f"finetune: going back beyond step 20: {newest} cannot be read")
    checkpoints.state_path(tmp_path, 10).write_bytes(b"")
    assert restore_newest(tmp_path, Trained(others, second), lines.append) == (0, 0.0)


def test_foreign_states_are_named_and_the_advice_works(tmp_path: Path) -> None:
    root = tmp_path / "0123.partial"
    models, optimizer = build()
    step(models, optimizer, 0)
    save_state(root, 10, 0.0, Trained(models, optimizer))
    foreign = Trained([AdaptedModel("text_encoder", nn.Linear(96, 96))], optimizer)
    with pytest.raises(ArtifactError, match=r"step-000010.*other adapters.*; delete ") as caught:
        restore_newest(root, foreign, print)
    shutil.rmtree(str(caught.value).partition("; delete ")[2].partition(" to train")[0])
    assert restore_newest(root, foreign, print) == (0, 0.0)


def test_a_disk_that_fills_up_leaves_the_states_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    models, optimizer = build()
    step(models, optimizer, 0)
    save_state(tmp_path, 10, 0.0, Trained(models, optimizer))

    def fill(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fill)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, 20, 0.0, Trained(models, optimizer))
    assert [p.name for p in (tmp_path / checkpoints.STATES).iterdir()] == [
        "step-000010.safetensors"
    ]
    others, second = build(seed=5)
    assert restore_newest(tmp_path, Trained(others, second), print) == (10, 0.0)


@pytest.mark.usefixtures("_plain_export")
def test_the_best_before_stays_until_it_is_dropped(tmp_path: Path) -> None:
    models, _ = build()
    for number in (3, 5):
        checkpoints.save_best(tmp_path, number, models)
    assert checkpoints.list_checkpoints(tmp_path, checkpoints.BEST) == [3, 5]
    checkpoints.drop_best(tmp_path, {None, 5})
    assert checkpoints.list_checkpoints(tmp_path, checkpoints.BEST) == [5]
    assert checkpoints.list_checkpoints(tmp_path) == []
