"""A checkpoint goes on where it was written, or says that it does not fit, and what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import TrainingError
from stages.components.embedded import checkpoints

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
    checkpoints.save(tmp_path / "sd.ckpt", 7, modules, optimizers, ARCHITECTURE)
    return tmp_path / "sd.ckpt"


def test_what_was_saved_comes_back(path: Path) -> None:
    modules, optimizers = parts()
    before = modules["model"].weight.clone()
    assert checkpoints.restore(path, modules, optimizers, ARCHITECTURE) == 7
    moved = (modules["model"].weight - before).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.25), atol=0.02)  # one step of AdamW
    assert torch.equal(modules["average"].weight, parts()[0]["average"].weight)
    assert len(optimizers[0].state) == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["sd.ckpt"]


def test_no_file_is_no_step(tmp_path: Path) -> None:
    assert checkpoints.restore(tmp_path / "none.ckpt", *parts(), ARCHITECTURE) == 0


def test_one_that_does_not_say_what_it_is_loads_if_it_fits(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    del state["architecture"]
    torch.save(state, path)
    assert checkpoints.restore(path, *parts(), ARCHITECTURE) == 7


def test_settings_that_only_another_version_knows_are_no_difference(path: Path) -> None:
    now = {"unet": {"heads": [1, 4], "added_since": 1}, "vocabulary": "abc"}
    assert checkpoints.restore(path, *parts(), now) == 7


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
        checkpoints.restore(path, *parts(width), now)
    assert "\n" not in str(caught.value)


def test_another_number_of_optimizers_is_an_older_format(path: Path) -> None:
    modules, optimizers = parts()
    with pytest.raises(TrainingError, match=rf"zip\(\) argument 2 is shorter.*{REMEDY}"):
        checkpoints.restore(path, modules, [*optimizers, *parts()[1]], ARCHITECTURE)
