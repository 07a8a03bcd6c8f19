"""Random weights, and generations of a second."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import registry
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    CheckpointRecord,
    Context,
    PluginConfig,
    SyntheticRecord,
)
from pipeline.settings import FinetuneConfig, GenerateConfig
from stages.finetune.adapters.export import save_adapter
from stages.finetune.adapters.lora import add_adapters
from stages.generate.orders import build_orders
from stages.generate.stage import STAGE, GenerateInputs, make_share
from tests.conftest import AddFile
from tests.fabricate.pipelines import tiny_settings

ALONE = GenerateInputs(finetune=None, caption=None)
Run = Callable[..., ArtifactWriter[SyntheticRecord]]


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def adapter(weights_dir: Path) -> Artifact[CheckpointRecord]:
    """An adapter that changes images."""
    plugin = registry.find(registry.BASE_MODELS, "sd15")
    base = plugin.load(tiny_settings(plugin, weights_dir), dtype=torch.float32, device="cpu")
    models = add_adapters(base, FinetuneConfig(lora_rank=4, train_text_encoder=True), seed=0)
    generator = torch.Generator().manual_seed(1)
    for model in models:
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    save_adapter(models, weights_dir / "adapter")
    return Artifact(weights_dir / "adapter", "digest-of-adapter", CheckpointRecord, {})


@pytest.fixture(scope="session")
def run() -> Run:
    return make


@pytest.fixture
def scripted(add_file: AddFile, run: Run) -> Run:
    """Run with the base model `scripted`, which fails where its `script` says so."""
    add_file(registry.BASE_MODELS, "scripted")
    return partial(run, model="scripted")


def configure(
    weights_dir: Path, model: str = "sd15", script: dict[str, Any] | None = None, **changes: Any
) -> GenerateConfig:
    """Ask for six small images; `script` changes the base model's settings."""
    settings = tiny_settings(registry.find(registry.BASE_MODELS, model), weights_dir)
    given = {
        "base_model": PluginConfig(name=model, settings=settings.model_dump() | (script or {})),
        "prompt_style": "structured",
        "include_label": False,
        "num_images": 6,
        "image_size": 32,
        "num_inference_steps": 2,
        "batch_size": 4,
    }
    return GenerateConfig(**(given | changes))


def make(
    root: Path,
    weights_dir: Path,
    inputs: GenerateInputs = ALONE,
    dtype: str = "float32",
    lines: list[str] | None = None,
    progress: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> ArtifactWriter[SyntheticRecord]:
    """Generate; `lines` collects the progress, and a `progress` that raises kills the run."""
    root.mkdir(exist_ok=True)
    output = ArtifactWriter(root, SyntheticRecord)
    say = progress if lines is None else lines.append
    context = Context("e", 0, "cpu", dtype, 1, weights_dir, say)
    STAGE.run(configure(weights_dir, **changes), inputs, output, context)
    return output


def share(root: Path, weights_dir: Path, shard: int, num_shards: int, **changes: Any) -> None:
    """Do one share of the work in this process, as `shares` does it in one of its own."""
    root.mkdir(exist_ok=True)
    config = configure(weights_dir, **changes)
    make_share(
        shard,
        num_shards,
        Context("e", 0, "cpu", "float32", 1, weights_dir, lambda line: None),
        config=config,
        inputs=ALONE,
        root=root,
        orders=build_orders(config, None, None, 0),
        done=frozenset(),
    )


def seeds_of_calls(calls: Path) -> list[list[int]]:
    """Read what the base model `scripted` noted: the seeds of every call."""
    return [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()]
