"""An experiment of all seven stages on tiny phantoms and random weights, seconds of training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline import registry
from tests.fabricate.pipelines import tiny_settings

EXPERIMENT: dict[str, Any] = {
    "experiment": "chain",
    "seed": 1,
    "preprocess": {
        "source": {
            "name": "phantom",
            "settings": {"num_subjects": 16, "spacing_mm": 4.0, "num_workers": 1},
        },
        "image_size": 64,
        "test_fraction": 0.3,
        "val_fraction": 0.2,
    },
    "caption": {"vlm": "truth"},
    "finetune": {
        "resolution": 64,
        "lora_rank": 2,
        "gradient_accumulation_steps": 1,
        "optimizer": "adamw",
        "warmup_steps": 1,
        "max_steps": 2,
        "checkpoint_every": 1,
        "validate_every": 1,
        "num_validation_samples": 2,
    },
    "generate": {"image_size": 64, "num_images": 8, "num_inference_steps": 2, "batch_size": 4},
    "evaluate": {"num_bootstrap": 4, "max_images": 8},
    "classify": {"image_size": 64, "max_steps": 2, "warmup_steps": 1, "validate_every": 1},
    "report": {},
}


def write_chain(folder: Path, base_models: Sequence[str]) -> Path:
    """Write `chain.yaml` with an arm for each base model, and the models; return its path."""
    arms = []
    for name in base_models:
        tiny = tiny_settings(registry.find(registry.BASE_MODELS, name), folder)
        base = {"name": name, "settings": tiny.model_dump(mode="json")}
        arms.append({"name": f"arm_{name}", "base_model": base})
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump({**EXPERIMENT, "arms": arms}))
    return path
