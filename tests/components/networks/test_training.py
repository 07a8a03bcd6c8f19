"""The loop is the plain one; a checkpoint goes on where it was written, or says what to do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import TrainingError
from stages.components.networks import training
from stages.components.networks.muon import optimizers

ARCHITECTURE = {"unet": {"heads": [1, 4]}, "vocabulary": "abc"}
REMEDY = "Delete it to train from the start"


def parts(width: int = 3) -> tuple[dict[str, nn.Module], list[torch.optim.Optimizer]]:
    torch.manual_seed(width)
    modules: dict[str, nn.Module] = {
        "model": nn.Linear(2, width), "average": nn.Linear(2, width)
    }  # fmt: skip
    return modules, [torch.optim.AdamW(modules["model"].parameters(), lr=0.25)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    modules, optimizers = parts()
    modules["model"](torch.ones(1, 2)).sum().backward()
    optimizers[0].step()
    training.save(tmp_path / "sd.ckpt", 7, modules, optimizers, ARCHITECTURE)
    return tmp_path / "sd.ckpt"


def test_what_was_saved_comes_back(path: Path) -> None:
    modules, optimizers = parts()
    before = modules["model"].weight.clone()
    assert training.restore(path, modules, optimizers, ARCHITECTURE) == 7
    moved = (modules["model"].weight - before).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.25), atol=0.02)  # one step of AdamW
    assert torch.equal(modules["average"].weight, parts()[0]["average"].weight)
    assert len(optimizers[0].state) == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["sd.ckpt"]


def test_no_file_is_no_step(tmp_path: Path) -> None:
    assert training.restore(tmp_path / "none.ckpt", *parts(), ARCHITECTURE) == 0


def test_one_that_does_not_say_what_it_is_loads_if_it_fits(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    del state["architecture"]
    torch.save(state, path)
    assert training.restore(path, *parts(), ARCHITECTURE) == 7


def test_settings_that_only_another_version_knows_are_no_difference(path: Path) -> None:
    now = {"unet": {"heads": [1, 4], "added_since": 1}, "vocabulary": "abc"}
    assert training.restore(path, *parts(), now) == 7


def without(key: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        del state[key]
        torch.save(state, path)

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("change", "width", "now", "cause"),
    [
        (without("average"), 3, ARCHITECTURE, "it has no 'average'"),
        (without("optimizers"), 3, ARCHITECTURE, "it has no 'optimizers'"),
        (without("architecture"), 5, ARCHITECTURE, r"loading state_dict for Linear"),
        (cut, 3, ARCHITECTURE, "failed"),
        (lambda path: path.write_bytes(b""), 3, ARCHITECTURE, "EOFError"),
        (
            lambda path: None,  # weights of one shape, and another network
            3,
            {**ARCHITECTURE, "unet": {"heads": [1, 3]}},
            r"unet\.heads is \[1, 4\], expected \[1, 3\]",
        ),
        (lambda path: None, 3, {**ARCHITECTURE, "vocabulary": "abd"}, "vocabulary is abc"),
    ],
)
def test_one_that_does_not_fit_is_named_with_the_remedy(
    path: Path, change: Callable[[Path], Any], width: int, now: dict[str, Any], cause: str
) -> None:
    change(path)
    with pytest.raises(TrainingError, match=rf"sd\.ckpt .*{cause}.*{REMEDY}") as caught:
        training.restore(path, *parts(width), now)
    assert "\n" not in str(caught.value)


def test_another_number_of_optimizers_is_an_older_format(path: Path) -> None:
    modules, optimizers = parts()
    with pytest.raises(TrainingError, match=rf"zip\(\) argument 2 is shorter.*{REMEDY}"):
        training.restore(path, modules, [*optimizers, *parts()[1]], ARCHITECTURE)


@dataclass(frozen=True)
class Settings:
    steps: int
    seed: int = 4
    learning_rate: float = 0.05
    warmup_steps: int = 2
    weight_decay: float = 0.1
    max_grad_norm: float = 0.5
    checkpoint_every: int = 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def loss_of(model: nn.Module, rng: np.random.Generator) -> torch.Tensor:
    drawn = torch.from_numpy(rng.standard_normal((5, 3), dtype=np.float32))
    return (model(drawn) - drawn.sum(1, keepdim=True)).square().mean()


def fit_net(
    path: Path, settings: Settings, lines: list[str], steps: list[int] | None = None
) -> nn.Module:
    model = network()

    def compute(step: int, rng: np.random.Generator) -> training.Losses:
        loss = loss_of(model, rng)
        return training.Losses(loss, {"loss": loss, "step": torch.tensor(float(step))})

    training.fit(
        {"model": model}, compute, settings, name="net", checkpoint=path, architecture={},
        progress=lines.append, after_step=None if steps is None else steps.append,
    )  # fmt: skip
    return model


def test_fit_does_what_the_plain_loop_does(tmp_path: Path) -> None:
    settings, lines, steps = Settings(5), list[str](), list[int]()
    made = fit_net(tmp_path / "net.ckpt", settings, lines, steps)
    plain = network()
    steppers = optimizers(plain, lr=1.0, weight_decay=settings.weight_decay)
    for step in range(5):
        rate = training.learning_rate(step, peak=0.05, warmup_steps=2, steps=5)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate
            stepper.zero_grad()
        loss_of(plain, np.random.default_rng([settings.seed, step])).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), settings.max_grad_norm)
        for stepper in steppers:
            stepper.step()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, made.state_dict()[name]), name
    assert steps == [0, 1, 2, 3, 4]
    assert [line.split(", ")[0] for line in lines] == [
        "net: step 2 of 5", "net: step 4 of 5", "net: step 5 of 5",
    ]  # fmt: skip
    assert [line.split(", ")[2] for line in lines] == ["step 0.5000", "step 2.5000", "step 4.0000"]


def test_a_broken_fit_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    lines: list[str] = []
    kept = {"learning_rate": 0.05, "warmup_steps": 10}  # the rate of a step is that of any length
    whole = fit_net(tmp_path / "whole.ckpt", Settings(5, **kept), [])
    fit_net(tmp_path / "net.ckpt", Settings(3, **kept), [])
    resumed = fit_net(tmp_path / "net.ckpt", Settings(5, **kept), lines)
    assert lines[0] == "net: going on at step 3"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_loss_that_is_not_finite_stops_the_fit(tmp_path: Path) -> None:
    model = network()

    def compute(step: int, rng: np.random.Generator) -> training.Losses:
        loss = loss_of(model, rng) * (float("inf") if step == 2 else 1.0)
        return training.Losses(loss, {})

    with pytest.raises(TrainingError, match=r"net: .* at step 3 is inf; lower .* rate of 0\.05"):
        training.fit(
            {"model": model}, compute, Settings(5), name="net", architecture={},
            checkpoint=tmp_path / "net.ckpt", progress=print,
        )  # fmt: skip
    assert training.restore(
        tmp_path / "net.ckpt", {"model": model}, optimizers(model, lr=1.0, weight_decay=0), {}
    ) == 2  # fmt: skip
