"""What `mrisynth check` finds about a training, on tiny weights with whole headers."""

import importlib.util
from pathlib import Path

import pytest

from pipeline import registry
from pipeline.settings import FinetuneConfig
from stages.components.training_checks import missing_library


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def check(weights_dir: Path, available: int = 2**40, **changes: object) -> list[str]:
    plugin = registry.find(registry.BASE_MODELS, "sdxl")
    config = FinetuneConfig(**({"resolution": 32, "lora_rank": 4} | changes))
    lines: list[str] = plugin.check_training(
        plugin.tiny(weights_dir), config, dtype="float32", available=available
    )
    return lines


def test_nothing_is_in_the_way(weights_dir: Path) -> None:
    assert check(weights_dir, train_text_encoder=True, target_preset="wider") == []


def test_rank_beyond_a_layer_is_found_before_anything_is_loaded(weights_dir: Path) -> None:
    (line,) = check(weights_dir, lora_rank=33)
    assert "rank 33 of unet is larger than its layer 'down_blocks.1" in line
    assert "at most 32" in line
    lines = check(weights_dir, train_text_encoder=True, text_encoder_rank=40)
    assert [line.split(" is larger")[0] for line in lines] == [
        "finetune: rank 40 of text_encoder",
        "finetune: rank 40 of text_encoder_2",
    ]


def test_too_little_memory_says_how_much_and_what_to_do(weights_dir: Path) -> None:
    (line,) = check(weights_dir, available=2**30)
    assert line.startswith("finetune needs about 1.5 GiB (weights 0.0")
    assert "and 1.0 GiB are free; turn on finetune.gradient_checkpointing" in line


def test_missing_packages_are_named(weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    lines = check(weights_dir, optimizer="prodigy", quantize_base=True)
    assert [line.split("package ")[1].split(",")[0] for line in lines] == [
        *("prodigyopt", "tensorboard", "bitsandbytes")
    ]
    assert missing_library("adamw") is None


def test_no_weights_no_estimate(tmp_path: Path) -> None:
    plugin = registry.find(registry.BASE_MODELS, "sd15")
    settings = plugin.Settings(model=str(tmp_path / "gone"))
    config = FinetuneConfig()
    assert plugin.predict_memory(settings, config, dtype="float32") is None
    assert plugin.check_training(settings, config, dtype="float32", available=0) == []
