"""Adapters: where they go, what they weigh, and that plain diffusers reads what is written."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from pipeline import registry
from pipeline.errors import TrainingError
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.adapters import ADAPTER_FILE, METADATA_KEY
from stages.components.diffusion.base_model import BaseModel
from stages.finetune.adapters import lora
from stages.finetune.adapters.export import save_adapter
from stages.finetune.adapters.lora import add_adapters
from stages.finetune.adapters.targets import ATTENTION
from tests.fabricate.pipelines import tiny_settings

WIDE = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "proj_in", "proj_out")


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(params=["sd15", "sdxl"])
def plugin(request: pytest.FixtureRequest) -> ModuleType:
    return registry.find(registry.BASE_MODELS, request.param)


def load(plugin: ModuleType, weights_dir: Path, dtype: torch.dtype = torch.float32) -> BaseModel:
    base: BaseModel = plugin.load(tiny_settings(plugin, weights_dir), dtype=dtype, device="cpu")
    return base


def plan(
    rank: int = 4, alpha: float = 4.0, text: int | None = 4, wide: bool = False
) -> FinetuneConfig:
    return FinetuneConfig(
        lora_rank=rank,
        lora_alpha=alpha,
        target_modules=WIDE if wide else ATTENTION,
        train_text_encoder=text is not None,
        text_encoder_rank=text,
    )


def shake(models: list[lora.AdaptedModel]) -> None:
    """Give adapters weights that change images, as training would."""
    generator = torch.Generator().manual_seed(3)
    for model in models:
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def image_of(pipeline: Any) -> Any:
    return pipeline(
        "tumor: yes; size: large",
        height=32,
        width=32,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images[0]


def test_adapter_weights_are_float32_on_a_bfloat16_model(weights_dir: Path) -> None:
    # Fault 3: in bfloat16 Adam's updates vanish.
    base = load(registry.find(registry.BASE_MODELS, "sdxl"), weights_dir, torch.bfloat16)
    models = add_adapters(base, plan(wide=True), seed=0)
    assert [m.prefix for m in models] == ["unet", "text_encoder", "text_encoder_2"]
    assert {p.dtype for m in models for p in m.parameters()} == {torch.float32}
    assert all("lora_" in name for m in models for name in m.named_parameters())
    assert base.unet.conv_in.weight.dtype == torch.bfloat16


def test_fresh_adapter_changes_nothing_and_comes_from_its_seed(weights_dir: Path) -> None:
    plugin = registry.find(registry.BASE_MODELS, "sd15")
    base = load(plugin, weights_dir)
    ids = torch.tensor([[3, 4, 5]])
    before = base.text_encoders[0](ids).last_hidden_state
    models = add_adapters(base, plan(), seed=1)
    torch.manual_seed(123)
    again, other = (add_adapters(load(plugin, weights_dir), plan(), seed=s) for s in (1, 2))
    assert torch.equal(base.text_encoders[0](ids).last_hidden_state, before)
    pairs = [
        (a, b, c)
        for m, n, o in zip(models, again, other, strict=True)
        for a, b, c in zip(m.parameters(), n.parameters(), o.parameters(), strict=True)
    ]
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_default_targets_are_the_attention_projections(weights_dir: Path) -> None:
    base = load(registry.find(registry.BASE_MODELS, "sd15"), weights_dir)
    layers = lora.target_layers("unet", base.unet, ATTENTION)
    (model,) = add_adapters(base, plan(rank=4, text=None), seed=0)
    assert all(".attn" in name for name in layers)
    # A: rank x in, B: out x rank.
    expected = sum(4 * (w.weight.shape[0] + w.weight.shape[1]) for w in layers.values())
    assert sum(p.numel() for p in model.parameters()) == expected


def test_rank_beyond_a_layer_names_layer_rank_and_limit(weights_dir: Path) -> None:
    base = load(registry.find(registry.BASE_MODELS, "sd15"), weights_dir)
    with pytest.raises(TrainingError, match=r"lora_rank is 33, but unet layer '.*to_.*most 32\."):
        add_adapters(base, plan(rank=33), seed=0)
    with pytest.raises(TrainingError, match=r"text_encoder_rank is 40, but text_encoder layer"):
        add_adapters(base, plan(rank=4, text=40), seed=0)
    assert not any(p.requires_grad for p in base.unet.parameters())  # nothing was half done


def test_limit_of_a_convolution_counts_its_kernel() -> None:
    layers: dict[str, nn.Linear | nn.Conv2d] = {"c": nn.Conv2d(2, 64, 3)}
    lora.require_rank("unet", layers, 18)  # 2 channels x 3 x 3
    with pytest.raises(TrainingError, match="at most 18"):
        lora.require_rank("unet", layers, 19)


def test_target_that_matches_nothing_is_named(weights_dir: Path) -> None:
    base = load(registry.find(registry.BASE_MODELS, "sd15"), weights_dir)
    with pytest.raises(TrainingError, match=r"'to_x' matches no .* layer of unet; .*conv_in"):
        add_adapters(base, FinetuneConfig(lora_rank=4, target_modules=("to_k", "to_x")), seed=0)


@pytest.mark.parametrize("wide", [False, True])
def test_plain_diffusers_gives_our_image(
    plugin: ModuleType, weights_dir: Path, tmp_path: Path, wide: bool
) -> None:
    settings = tiny_settings(plugin, weights_dir)
    base = load(plugin, weights_dir)
    models = add_adapters(base, plan(rank=4, alpha=6.0, text=8, wide=wide), seed=0)
    shake(models)
    save_adapter(models, tmp_path)

    trained = plugin.load_pipeline(settings, dtype=torch.float32, device="cpu")
    untouched = image_of(trained)
    trained.unet, trained.text_encoder = base.unet, base.text_encoders[0]
    if len(base.text_encoders) > 1:
        trained.text_encoder_2 = base.text_encoders[1]
    ours = image_of(trained)
    plain = plugin.load_pipeline(settings, dtype=torch.float32, device="cpu")
    plain.load_lora_weights(tmp_path)
    fused = plugin.load_pipeline(settings, dtype=torch.float32, device="cpu", adapter_dir=tmp_path)

    assert np.abs(ours - untouched).max() > 4 / 255  # the adapter does something
    assert np.abs(image_of(plain) - ours).max() <= 1 / 255
    assert np.abs(image_of(fused) - ours).max() <= 1 / 255


def test_text_encoder_matters_in_the_export(
    plugin: ModuleType, weights_dir: Path, tmp_path: Path
) -> None:
    models = add_adapters(load(plugin, weights_dir), plan(), seed=0)
    shake(models)
    for parameter in models[0].parameters():
        parameter.data.zero_()  # leave the UNet alone
    save_adapter(models, tmp_path)
    pipeline = plugin.load_pipeline(
        tiny_settings(plugin, weights_dir), dtype=torch.float32, device="cpu"
    )
    before = image_of(pipeline)
    pipeline.load_lora_weights(tmp_path)
    assert np.abs(image_of(pipeline) - before).max() > 1 / 255


def test_exported_names_have_the_level_that_older_readers_expect(
    weights_dir: Path, tmp_path: Path
) -> None:
    base = load(registry.find(registry.BASE_MODELS, "sdxl"), weights_dir)
    save_adapter(add_adapters(base, plan(), seed=0), tmp_path)
    with safe_open(tmp_path / ADAPTER_FILE, "np") as stored:
        names = list(stored.keys())
    starts = {name.split(".layers.")[0] for name in names if name.startswith("text_encoder")}
    assert starts == {"text_encoder.text_model.encoder", "text_encoder_2.text_model.encoder"}
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)


def test_the_same_adapter_gives_the_same_bytes(weights_dir: Path, tmp_path: Path) -> None:
    models = add_adapters(load(registry.find(registry.BASE_MODELS, "sd15"), weights_dir), plan(), 0)
    written = set()
    for number in range(6):  # several metadata entries would come in any order
        save_adapter(models, tmp_path / str(number))
        written.add((tmp_path / str(number) / ADAPTER_FILE).read_bytes())
    assert len(written) == 1
    with safe_open(tmp_path / "0" / ADAPTER_FILE, "np") as stored:
        settings = json.loads(stored.metadata()[METADATA_KEY])
    # A set's order changes with every process.
    assert settings["unet.target_modules"] == sorted(ATTENTION)
    assert settings["unet.lora_alpha"] == settings["unet.r"] == 4
