"""What configuration and check say about a training, with plug-ins that load nothing."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import checks, registry
from pipeline.errors import ConfigError
from pipeline.plan import plan
from pipeline.settings import RunConfig

Load = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer=schedule_free"], "expected 'constant' with optimizer schedule_free"),
        (["optimizer=muon", "adapter=dora"], "expected 'lora' or 'rslora' .* found 'dora'"),
        (["optimizer=prodigy", "learning_rate=0.01"], "expected 0.1 to 10 .* found 0.01"),
        (
            [
                *("optimizer=prodigy", "learning_rate=1", "train_text_encoder=true"),
                "text_encoder_learning_rate=0.5",
            ],
            "prodigy estimates one rate for all; leave it out, found 0.5",
        ),
        (
            ["target_preset=wider", "target_modules=[to_k]"],
            r"'wider' and target_modules \['to_k'\]",
        ),
        (
            ["method=textual_inversion", "train_text_encoder=true"],
            "train_text_encoder: expected false with method textual_inversion.* found true",
        ),
        (["method=textual_inversion", "optimizer=muon"], "expected another than 'muon'"),
        (["inversion.num_vectors=2"], "inversion: only with method: textual_inversion"),
        (
            ["method=textual_inversion", "inversion.placeholder=scan"],
            "inversion.placeholder: .* found 'scan'",
        ),
        (
            ["method=textual_inversion", "optimizer=prodigy", "learning_rate=1"],
            "inversion.learning_rate: expected 0.1 to 10 .* found 0.0005",
        ),
        (["select_by=best"], "select_by: .* found 'best'"),
        (["ema_decay=1.5"], "expected a number < 1, found 1.5"),
        (["optimizer=lion"], "found 'lion'"),
    ],
)
def test_settings_that_do_not_go_together(load: Load, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(*(f"finetune.{override}" for override in overrides))


def test_what_the_optimisers_want_is_accepted(load: Load) -> None:
    load("finetune.optimizer=schedule_free", "finetune.lr_schedule=constant")
    load("finetune.optimizer=prodigy", "finetune.learning_rate=1")


@pytest.fixture
def base_model(load: Load, parts: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Let the fake base models speak about training; collect what they are told."""
    heard: list[dict[str, object]] = []

    def check(settings: object, config: object, **given: object) -> list[str]:
        heard.append(given)
        return ["finetune needs about 99.0 GiB"]

    for name in registry.available(f"{parts}.base_models"):
        module = registry.find(f"{parts}.base_models", name)
        monkeypatch.setattr(module, "check_training", check, raising=False)
        monkeypatch.setattr(
            module,
            "predict_memory",
            lambda settings, config, dtype: SimpleNamespace(describe=lambda: f"99 GiB, {dtype}"),
            raising=False,
        )
    return heard


def test_each_training_is_predicted_and_checked(
    load: Load, tmp_path: Path, base_model: list[dict[str, object]]
) -> None:
    settings = load()
    nodes = plan(settings)
    titles = [node.title for node in nodes if node.stage == "finetune"]
    assert titles
    assert checks.predictions(nodes, settings) == [
        f"{title}: memory 99 GiB, float32" for title in titles
    ]
    found = checks.problems(nodes, settings, tmp_path)
    assert found == [f"{title}: finetune needs about 99.0 GiB" for title in titles]
    assert all(given["dtype"] == "float32" for given in base_model)
    assert all(2**20 < given["available"] < 2**50 for given in base_model)


def test_free_memory_of_a_gpu_is_asked_for(
    load: Load,
    tmp_path: Path,
    base_model: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, mem_get_info=lambda device: (7, 8)
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2.13.0"))
    settings = load("device=cuda")
    checks.problems(plan(settings), settings, tmp_path)
    assert {given["available"] for given in base_model} == {7}
    cuda.is_available = lambda: False
    base_model.clear()
    checks.problems(plan(settings), settings, tmp_path)
    assert {given["available"] for given in base_model} == {sys.maxsize}
