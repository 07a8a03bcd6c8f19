import contextlib

import pytest
import torch
from torch import nn

from stages.finetune.adapters.lora import AdaptedModel
from stages.finetune.averaging import AdapterAverage, Trained
from stages.finetune.optimizers import build_optimizer


def build() -> list[AdaptedModel]:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return [AdaptedModel("unet", layer)]


def test_average_follows_the_formula() -> None:
    models = build()
    average = AdapterAverage(models, 0.5)
    models[0].module.weight.data.fill_(11.0)
    average.update(1)  # decay (1 + 1) / (10 + 1)
    assert average.values["unet.weight"].item() == pytest.approx(11 * 9 / 11)
    average.update(100)  # decay 0.5
    assert average.values["unet.weight"].item() == pytest.approx(10.0)


def test_exported_weights_are_the_average_and_training_gets_its_own_back() -> None:
    models = build()
    average = AdapterAverage(models, 0.5)
    weight = models[0].module.weight
    weight.data.fill_(4.0)
    with contextlib.suppress(KeyError), Trained(models, object(), average).as_exported():
        assert weight.item() == 0.0
        raise KeyError("a fault meanwhile")
    assert weight.item() == 4.0


def test_without_an_average_nothing_is_touched() -> None:
    models = build()
    version = models[0].module.weight._version
    with Trained(models, torch.optim.SGD(models[0].parameters())).as_exported():
        pass
    assert models[0].module.weight._version == version


def test_schedule_free_is_exported_by_its_own_average_and_goes_on_bit_for_bit() -> None:
    models = build()
    optimizer = build_optimizer("schedule_free", [(models[0].parameters(), 0.1)], 0.0)
    weight = models[0].module.weight
    for _ in range(7):
        optimizer.zero_grad()
        (weight - 0.3).square().sum().backward()
        optimizer.step()
    before = weight.detach().clone()
    with Trained(models, optimizer).as_exported():
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)
    assert optimizer.param_groups[0]["train_mode"] is True
