"""Every optimiser takes groups and rates, learns, and goes on bit for bit after a restore."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import TrainingError
from stages.finetune import optimizers
from stages.finetune.optimizers import build_optimizer

NAMES = ["adamw", "adamw_8bit", "muon", "prodigy", "schedule_free"]


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(64, 64))


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_groups_have_rates_of_their_own(name: str) -> None:
    groups = [([parameter()], 1e-2), ([parameter()], 1e-3)]
    optimizer = build_optimizer(name, groups, weight_decay=0.0)
    for parameters, _ in groups:
        parameters[0].grad = torch.ones_like(parameters[0])
    optimizers.set_learning_rates(optimizer, [0.1, 0.0])
    optimizer.step()
    assert groups[0][0][0].mean().item() == pytest.approx(0.9, abs=1e-3)  # Adam's first step: lr
    assert groups[1][0][0].mean().item() == 1.0
    assert optimizers.effective_rate(optimizer) == 0.1


def descend(name: str, rate: float, steps: int) -> tuple[float, Any]:
    """Minimise |x - 3|^2 from 1."""
    target = parameter()
    optimizer = build_optimizer(name, [([target], rate)], weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        (target - 3).square().sum().backward()
        optimizer.step()
    return float(target.detach().mean()), optimizer


@pytest.mark.parametrize(
    ("name", "rate"), [("adamw", 0.1), ("adamw_8bit", 0.1), ("schedule_free", 0.3)]
)
def test_each_finds_a_minimum(name: str, rate: float) -> None:
    found, optimizer = descend(name, rate, 150)
    if name == "schedule_free":
        optimizer.eval()
        found = float(optimizer.param_groups[0]["params"][0].detach().mean())
    assert found == pytest.approx(3.0, abs=0.2)


def test_prodigy_raises_its_own_rate_until_it_moves(capsys: pytest.CaptureFixture[str]) -> None:
    found, optimizer = descend("prodigy", 1.0, 150)
    assert found == pytest.approx(3.0, abs=0.3)
    assert optimizers.effective_rate(optimizer) > 1e-3  # from 1e-6
    build_optimizer("prodigy", [([parameter()], 1.0)], weight_decay=0.01)
    assert capsys.readouterr().out == ""


def test_numbers_of_the_groups_are_collected_and_put_back() -> None:
    _, optimizer = descend("prodigy", 1.0, 50)
    numbers = optimizers.group_numbers(optimizer)
    assert numbers[0]["k"] == 50
    assert numbers[0]["d"] > 1e-6
    fresh = build_optimizer("prodigy", [([parameter()], 1.0)], weight_decay=0.0)
    optimizers.restore_group_numbers(fresh, numbers)
    assert optimizers.group_numbers(fresh) == numbers


@pytest.mark.parametrize(
    ("name", "package"),
    [("prodigy", "prodigyopt"), ("schedule_free", "schedulefree"), ("adamw_8bit", "bitsandbytes")],
)
def test_missing_package_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(TrainingError, match=rf"'{name}' needs the package {package}.*pip install"):
        build_optimizer(name, [([parameter()], 1.0)], weight_decay=0.0)
