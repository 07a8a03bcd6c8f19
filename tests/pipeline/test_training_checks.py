"""What configuration and check say about a training, with plug-ins that load nothing."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import ConfigError
from pipeline.run import checks
from pipeline.run.plan import plan
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


LARGE = "about 4000001.5 GiB (weights 4000000.0, adapter and optimiser 0.0, activations 0.0"


@pytest.fixture
def base_model(parts: Path) -> None:
    """Let the fake base models have weights that no machine holds."""
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    networks = {"unet": {layer: (8, 8)}, "vae": {"conv.weight": (10**6 * 2**30,)}}
    for path in (parts / "base_models").glob("*.py"):
        with path.open("a") as out:
            out.write(f"\ndef read_networks(settings):\n    return {networks!r}\n")


@pytest.mark.usefixtures("base_model")
def test_each_training_is_predicted_and_checked(load: Load, tmp_path: Path) -> None:
    settings = load()
    nodes = plan(settings)
    titles = [node.title for node in nodes if node.stage == "finetune"]
    assert titles
    assert checks.predictions(nodes, settings) == [
        f"{title}: memory {LARGE}, libraries 1.5)" for title in titles
    ]
    found = checks.problems(nodes, settings, tmp_path)
    assert [line.partition(", libraries")[0] for line in found] == [
        f"{title}: finetune needs {LARGE}" for title in titles
    ]


def test_base_models_without_shapes_are_not_predicted(load: Load, tmp_path: Path) -> None:
    settings = load()
    nodes = plan(settings)
    assert checks.predictions(nodes, settings) == []
    assert checks.problems(nodes, settings, tmp_path) == []


@pytest.mark.usefixtures("base_model")
def test_free_memory_of_a_gpu_is_asked_for(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 7 * 2**30
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, mem_get_info=lambda device: (free, free)
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2.13.0"))
    settings = load("device=cuda")
    lines = checks.problems(plan(settings), settings, tmp_path)
    assert lines
    assert all(", and 7.0 GiB are free; turn on" in line for line in lines)
    cuda.is_available = lambda: False
    (line,) = checks.problems(plan(settings), settings, tmp_path)
    assert "torch 2.13.0 sees no GPU" in line
