"""How much memory a local captioner will take, told by `check` before anything is loaded."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.run import checks, config, plan
from stages.components.captioning.vlms import llava
from tests.fabricate.vlms import tiny

SIZES = {"text_config": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
                         "num_hidden_layers": 3, "head_dim": 16},
         "vision_config": {"image_size": 32, "patch_size": 8}}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of three matrices and a vector, 0.2 M numbers."""
    shapes = {
        "model.language_model.layers.0.mlp.up_proj.weight": (512, 256),
        "model.language_model.embed_tokens.weight": (128, 64),
        "model.vision_tower.layers.0.fc1.weight": (256, 256),
        "model.language_model.norm.weight": (64,),
    }
    save_file(
        {name: np.ones(shape, np.float16) for name, shape in shapes.items()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", **SIZES}))
    (tmp_path / "processor_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("dtype", "quantization", "expected"),
    [
        ("float32", "none", 4 * (512 * 256 + 128 * 64 + 256 * 256 + 64)),
        ("bfloat16", "none", 2 * (512 * 256 + 128 * 64 + 256 * 256 + 64)),
        # what sees, and what is no layer, stays as it is
        ("bfloat16", "8bit", 512 * 256 + 2 * (128 * 64 + 256 * 256 + 64)),
        ("bfloat16", "4bit", int(0.516 * 512 * 256 + 2 * (128 * 64 + 256 * 256 + 64))),
    ],
)
def test_weights_are_counted_as_they_are_held(
    folder: Path, dtype: str, quantization: str, expected: int
) -> None:
    settings = llava.Settings(model=str(folder), dtype=dtype, quantization=quantization)
    found = llava.PLUGIN.predict_memory(settings)
    assert found is not None
    assert found.weights == expected


def test_tokens_grow_with_the_batch_and_the_answer(folder: Path) -> None:
    def tokens(**settings: int) -> int:
        found = llava.PLUGIN.predict_memory(llava.Settings(model=str(folder), **settings))
        assert found is not None
        return found.tokens

    # keys and values, 3 layers, 2 heads of 16; 320 words, 16 image tokens and the answer
    assert tokens(batch_size=1, max_new_tokens=64) == 2 * 3 * 2 * 16 * 4 * (320 + 16 + 64)
    assert tokens(batch_size=8, max_new_tokens=64) == 8 * tokens(batch_size=1, max_new_tokens=64)


def test_weights_that_are_missing_are_not_estimated(tmp_path: Path) -> None:
    assert llava.PLUGIN.predict_memory(llava.Settings(model=str(tmp_path / "gone"))) is None


def test_check_says_what_a_captioner_takes_and_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(llava, tmp_path).model
    experiment = {
        "experiment": "trial",
        "base_model": "tiny_sd15",
        "preprocess": {"source": "phantom", "image_size": 128},
        "caption": {"vlm": {"name": "llava", "settings": {"model": model}}},
        "finetune": {"resolution": 128},
        "generate": {"image_size": 128},
        "evaluate": {},
        "classify": {"image_size": 128},
        "report": {},
    }
    settings = config.build(experiment, where="test")
    nodes = plan.plan(settings)
    lines = [line for line in checks.predictions(nodes, settings) if "tokens of a batch" in line]
    assert len(lines) == 1
    assert "caption" in lines[0] and ": memory about 1.5 GiB (weights 0.0, " in lines[0]
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 2**30}))
    found = [line for line in checks.problems(nodes, settings, tmp_path) if "captioner" in line]
    assert len(found) == 1
    assert "the captioner needs about 1.5 GiB (weights 0.0," in found[0]
    assert "and 1.0 GiB are free on cpu; set caption.vlm.settings.dtype: bfloat16" in found[0]
