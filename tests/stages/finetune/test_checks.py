"""What `mrisynth check` finds about a training, on tiny weights with whole headers."""

import importlib.util
from pathlib import Path

import pytest

from pipeline import registry
from pipeline.settings import FinetuneConfig
from stages.components.features.extractors.efficientnet_lite0 import PACKAGE
from stages.finetune import checks
from stages.finetune.memory import Shapes
from tests.fabricate.pipelines import tiny_settings


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def read(weights_dir: Path) -> dict[str, Shapes]:
    plugin = registry.find(registry.BASE_MODELS, "sdxl")
    networks: dict[str, Shapes] = plugin.read_networks(tiny_settings(plugin, weights_dir))
    return networks


def check(weights_dir: Path, available: int = 2**40, **changes: object) -> list[str]:
    config = FinetuneConfig(**({"resolution": 32, "lora_rank": 4} | changes))
    return list(checks.problems(config, read(weights_dir), "float32", available))


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
    absent, find = (
        {name for name, _ in checks.LIBRARIES.values()},
        importlib.util.find_spec,
    )
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    lines = check(weights_dir, optimizer="prodigy", quantize_base=True)
    assert [line.split("package ")[1].split(",")[0] for line in lines] == [
        *("prodigyopt", "tensorboard", "bitsandbytes")
    ]
    assert checks.missing_library("adamw") is None


def test_what_selection_by_kid_and_sending_need_is_said_before(
    weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(weights_dir, select_by="kid") == []
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == PACKAGE else find(name)
    )
    (line,) = check(weights_dir, select_by="kid")
    assert "finetune.select_by kid: no weights in the package" in line
    (line,) = check(weights_dir, push_to_hub="someone/mri", allow_upload=True)
    assert "'someone/mri', but the environment variable 'HF_TOKEN' is not set" in line


def test_a_tracker_without_a_key_is_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FinetuneConfig(trackers=("wandb",))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert checks.tracker_problem(FinetuneConfig()) is None
    problem = checks.tracker_problem(config) or ""
    assert "no key for api.wandb.ai; run `wandb login`" in problem
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123")
    assert checks.tracker_problem(config) is None
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.here.org")
    assert "no key for wandb.here.org" in (checks.tracker_problem(config) or "")
    for name, value in (("WANDB_API_KEY", "0123"), ("WANDB_MODE", "offline")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert checks.tracker_problem(config) is None


def test_new_words_take_no_rank_and_little_memory(weights_dir: Path) -> None:
    assert check(weights_dir, method="textual_inversion", lora_rank=999) == []
    adapters, words = (
        checks.predict_memory(
            FinetuneConfig(resolution=32, **changes), read(weights_dir), "float32"
        )
        for changes in (
            {"lora_rank": 4, "train_text_encoder": True},
            {"method": "textual_inversion"},
        )
    )
    assert words.trained == 0 < adapters.trained
    assert words.activations == adapters.activations


def test_grounding_and_compiled_blocks_do_not_go_together(weights_dir: Path) -> None:
    assert check(weights_dir, grounding_weight=0.1) == []
    (line,) = check(weights_dir, grounding_weight=0.1, compile_blocks=True)
    assert line.startswith("finetune: grounding_weight reads the attention that compile_blocks")
