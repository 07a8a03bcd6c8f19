"""Adapters computed on merged weights: the same outputs and gradients as beside them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline import registry
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.base_model import BaseModel
from stages.finetune.adapters.lora import AdaptedModel, add_adapters
from stages.finetune.adapters.merged import adapted_layers, is_cheaper, merge_while_training
from stages.finetune.adapters.targets import ATTENTION
from tests.fabricate.pipelines import tiny_settings

WIDE = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
ROWS = 4096
IDS = torch.tensor([[3, 4, 5, 6], [9, 2, 7, 1]])


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def load(weights_dir: Path, dtype: torch.dtype = torch.float32) -> BaseModel:
    plugin = registry.find(registry.BASE_MODELS, "sd15")
    base: BaseModel = plugin.load(tiny_settings(plugin, weights_dir), dtype=dtype, device="cpu")
    return base


def add(base: BaseModel, rank: int, kind: str = "lora") -> list[AdaptedModel]:
    config = FinetuneConfig(
        lora_rank=rank,
        lora_alpha=2.0 * rank,
        target_modules=WIDE,
        train_text_encoder=True,
        adapter=kind,  # type: ignore[arg-type]
    )
    return add_adapters(base, config, seed=0)


def shake(models: list[AdaptedModel]) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in (p for model in models for p in model.parameters()):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def predict(base: BaseModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, base.unet.config.in_channels, 8, 8, generator=generator)
    words = base.text_encoders[0](IDS).last_hidden_state
    found: Tensor = base.unet(latents, torch.tensor([5, 700]), encoder_hidden_states=words).sample
    return found


def gradients(base: BaseModel, models: list[AdaptedModel]) -> dict[str, Tensor]:
    for model in models:
        model.module.zero_grad()
    predict(base).square().mean().backward()
    named = {name: p for model in models for name, p in model.named_parameters().items()}
    return {name: p.grad.clone() for name, p in named.items() if p.grad is not None}


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_outputs_and_gradients_are_those_of_peft(weights_dir: Path, kind: str) -> None:
    base = load(weights_dir)
    models = add(base, 8, kind)
    shake(models)
    apart, apart_gradients = predict(base).detach(), gradients(base, models)
    count = merge_while_training(models, ROWS)
    kinds = {type(layer.base_layer) for m in models for layer in adapted_layers(m.module)}
    assert count > 0
    assert kinds == {nn.Linear, nn.Conv2d}
    torch.testing.assert_close(predict(base).detach(), apart, rtol=1e-4, atol=1e-5)
    merged_gradients = gradients(base, models)
    assert merged_gradients.keys() == apart_gradients.keys()
    assert len(apart_gradients) > 50
    for name, expected in apart_gradients.items():
        error = (merged_gradients[name] - expected).norm() / expected.norm().clamp_min(1e-12)
        assert error < 1e-4, name


def test_fresh_adapters_change_nothing_at_all(weights_dir: Path) -> None:
    base = load(weights_dir)
    before = predict(base)
    models = add(base, 8)
    assert merge_while_training(models, ROWS) > 0
    assert torch.equal(predict(base), before)


def test_wide_layers_of_low_rank_stay_as_peft_has_them(weights_dir: Path) -> None:
    base = load(weights_dir)
    models = add(base, 1)
    layers = [layer for model in models for layer in adapted_layers(model.module)]
    cheap = sum(is_cheaper(layer, ROWS) for layer in layers)
    assert merge_while_training(models, ROWS) == cheap < len(layers)
    untouched = [layer for layer in layers if "forward" not in vars(layer)]
    assert len(untouched) == len(layers) - cheap
    for layer in untouched:  # with r = 1: 3 (d_in + d_out) < d_in d_out + 3 d_in d_out / rows
        weight = layer.base_layer.weight
        assert 3 * (weight[0].numel() + len(weight)) <= weight.numel() * (1 + 3 / ROWS)


def test_few_rows_do_not_repay_a_product_of_the_factors(weights_dir: Path) -> None:
    models = add(load(weights_dir), 8)
    assert merge_while_training(models, 1) == 0
    assert merge_while_training(models, ROWS) > 0


def test_dora_is_left_to_peft(weights_dir: Path) -> None:
    assert merge_while_training(add(load(weights_dir), 8, "dora"), ROWS) == 0


def test_half_precision_is_left_to_peft(weights_dir: Path) -> None:
    # In bfloat16 the merged weight would round the adapter away.
    assert merge_while_training(add(load(weights_dir, torch.bfloat16), 8), ROWS) == 0
