"""Random weights, and generations of a second."""

from collections.abc import Callable
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
from stages.generate.stage import STAGE, GenerateInputs
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


def make(
    root: Path,
    weights_dir: Path,
    inputs: GenerateInputs = ALONE,
    model: str = "sd15",
    dtype: str = "float32",
    lines: list[str] | None = None,
    **changes: Any,
) -> ArtifactWriter[SyntheticRecord]:
    settings = tiny_settings(registry.find(registry.BASE_MODELS, model), weights_dir)
    given = {
        "base_model": PluginConfig(name=model, settings=settings.model_dump()),
        "prompt_style": "structured",
        "include_label": False,
        "num_images": 6,
        "image_size": 32,
        "num_inference_steps": 2,
        "batch_size": 4,
    }
    root.mkdir(exist_ok=True)
    output = ArtifactWriter(root, SyntheticRecord)
    say = ([] if lines is None else lines).append
    context = Context("e", 0, "cpu", dtype, 1, weights_dir, say)
    STAGE.run(GenerateConfig(**(given | changes)), inputs, output, context)
    return output
