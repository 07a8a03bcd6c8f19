from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import registry
from pipeline.errors import TrainingError
from pipeline.settings import FinetuneConfig
from stages.finetune.adapters.lora import add_adapters
from stages.finetune.quantisation import quantise_unet
from tests.fabricate.pipelines import tiny_settings


def test_transformers_are_packed_and_adapters_train_on_them(tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    plugin = registry.find(registry.BASE_MODELS, "sdxl")
    base = plugin.load(tiny_settings(plugin, tmp_path), dtype=torch.float32, device="cpu")
    given = {
        "encoder_hidden_states": torch.randn(2, 77, 64),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 32), "time_ids": torch.ones(2, 6)},
    }
    noisy = torch.randn(2, 12, 4, 4)
    whole = base.unet(noisy, 5, **given).sample
    assert quantise_unet(base.unet, torch.float32) == 40
    layers = [m for m in base.unet.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 40
    assert {layer.weight.dtype for layer in layers} == {torch.uint8}
    packed = base.unet(noisy, 5, **given).sample
    error = float((packed - whole).square().mean() / whole.square().mean())
    assert 0 < error < 0.02

    (model,) = add_adapters(base, FinetuneConfig(lora_rank=4), seed=0)
    torch.testing.assert_close(base.unet(noisy, 5, **given).sample, packed)
    base.unet(noisy, 5, **given).sample.square().mean().backward()
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and g.dtype == torch.float32 for g in grads)
    assert any(float(g.abs().max()) > 0 for g in grads)


def test_network_without_such_layers_is_named() -> None:
    with pytest.raises(TrainingError, match="quantize_base: Sequential has no linear layer"):
        quantise_unet(nn.Sequential(nn.Linear(64, 64)), torch.float32)
