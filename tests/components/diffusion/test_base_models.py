"""Every base-model plug-in, on random weights in the hub's own layout."""

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import registry
from pipeline.errors import MissingWeightsError, ValueRangeError
from stages.components.diffusion import base_model
from tests.fabricate.pipelines import build_vae, tiny_settings

TEXTS = ["tumor: yes; location: left frontal lobe; size: small", "", "tumor: no"]
NAMES = registry.available(registry.BASE_MODELS)


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(params=["sd15", "sdxl"])
def plugin(request: pytest.FixtureRequest) -> ModuleType:
    return registry.find(registry.BASE_MODELS, request.param)


def load(plugin: ModuleType, weights_dir: Path, dtype: torch.dtype = torch.float32) -> Any:
    return plugin.load(tiny_settings(plugin, weights_dir), dtype=dtype, device="cpu")


def load_pipeline(plugin: ModuleType, weights_dir: Path) -> Any:
    settings = tiny_settings(plugin, weights_dir)
    return plugin.load_pipeline(settings, dtype=torch.float32, device="cpu")


def test_the_four_base_models_are_there() -> None:
    assert {"sd15", "sdxl", "tiny_sd15", "tiny_sdxl"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_contract_of_every_plugin(name: str, weights_dir: Path) -> None:
    plugin = registry.find(registry.BASE_MODELS, name)
    settings = tiny_settings(plugin, weights_dir)
    assert isinstance(settings, plugin.Settings)
    assert plugin.check(settings) == []
    assert plugin.read_networks(settings)["unet"]["conv_in.weight"] == (16, 12, 3, 3)
    assert plugin.read_networks(plugin.Settings(model=str(weights_dir / "gone"))) == {}
    assert plugin.input_digest(settings) == plugin.input_digest(tiny_settings(plugin, weights_dir))
    limits = [tokenizer.model_max_length for tokenizer in plugin.load_tokenizers(settings)]
    assert limits == [77] * (2 if "xl" in name else 1)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_large_models_say_what_to_download_and_under_which_licence(name: str) -> None:
    plugin = registry.find(registry.BASE_MODELS, name)
    settings = plugin.Settings()
    lines = plugin.check(settings)
    assert f"hf download {settings.model}" in lines[0]
    assert "Licence: https://" in lines[0]
    assert len(lines) == (2 if name == "sdxl" else 1)  # SDXL's VAE is a download of its own
    for act in (
        plugin.load_tokenizers,
        lambda s: plugin.load(s, dtype=torch.float32, device="cpu"),
    ):
        with pytest.raises(MissingWeightsError, match=settings.model):
            act(settings)


def test_separate_vae_replaces_the_models_own(weights_dir: Path) -> None:
    plugin = registry.find(registry.BASE_MODELS, "sd15")
    settings = tiny_settings(plugin, weights_dir)
    other = settings.model_copy(update={"vae": f"{settings.model}/vae"})
    assert plugin.check(other) == []
    assert plugin.input_digest(other) != plugin.input_digest(settings)
    base = plugin.load(other, dtype=torch.float32, device="cpu")
    assert base.vae.config.latent_channels == 12


def test_vae_alone_needs_nothing_else(weights_dir: Path, tmp_path: Path) -> None:
    plugin = registry.find(registry.BASE_MODELS, "sdxl")
    settings = tiny_settings(plugin, weights_dir)
    shutil.copytree(Path(settings.model) / "vae", tmp_path / "vae")
    whole = plugin.load_vae(settings, device="cpu")
    for other in (
        settings.model_copy(update={"model": str(tmp_path)}),
        settings.model_copy(update={"vae": str(tmp_path / "vae")}),
    ):
        vae = plugin.load_vae(other, device="cpu")
        assert torch.equal(vae.quant_conv.weight, whole.quant_conv.weight)
        assert vae.dtype == torch.float32
        assert not any(p.requires_grad for p in vae.parameters())
    with pytest.raises(MissingWeightsError, match="sdxl-vae-fp16-fix"):
        plugin.load_vae(plugin.Settings(), device="cpu")


def test_weights_are_frozen_and_the_vae_is_float32(plugin: ModuleType, weights_dir: Path) -> None:
    base = load(plugin, weights_dir, torch.bfloat16)
    networks = [base.unet, base.vae, *base.text_encoders]
    assert not any(p.requires_grad or m.training for m in networks for p in m.parameters())
    assert base.unet.dtype == base.text_encoders[0].dtype == torch.bfloat16
    assert base.vae.dtype == torch.float32


def test_prompts_are_encoded_as_the_pipeline_does(plugin: ModuleType, weights_dir: Path) -> None:
    pipeline = load_pipeline(plugin, weights_dir)
    found = base_model.encode_prompts(base_model.parts_of(pipeline), TEXTS)
    for row, text in enumerate(TEXTS):
        if pipeline.__class__.__name__ == "StableDiffusionPipeline":
            expected, _ = pipeline.encode_prompt(text, "cpu", 1, False)
            pooled = None
        else:
            # The pipeline's unconditional branch is the negative embedding of no prompt at all.
            positive, negative, pool, no_pool = pipeline.encode_prompt("x" if text == "" else text)
            expected, pooled = (negative, no_pool) if text == "" else (positive, pool)
        # 1e-5: a batch of three and a batch of one round differently.
        torch.testing.assert_close(found.prompt_embeds[row], expected[0], atol=1e-5, rtol=1e-5)
        if pooled is not None:
            assert found.pooled is not None
            torch.testing.assert_close(found.pooled[row], pooled[0], atol=1e-5, rtol=1e-5)


def test_time_ids_are_those_of_the_pipeline(weights_dir: Path) -> None:
    pipeline = load_pipeline(registry.find(registry.BASE_MODELS, "sdxl"), weights_dir)
    expected = pipeline._get_add_time_ids(
        (128, 128), (0, 0), (128, 128), torch.float32, text_encoder_projection_dim=32
    )
    found = base_model.time_ids(128, torch.tensor([[0, 0], [3, 7]]))
    assert found[:1].tolist() == expected.tolist()
    assert found[1].tolist() == [128, 128, 3, 7, 128, 128]


def test_unet_prediction_has_the_shape_of_the_latents(
    plugin: ModuleType, weights_dir: Path
) -> None:
    base = load(plugin, weights_dir)
    conditioning = base_model.encode_prompts(base, TEXTS[:2])
    ids = base_model.time_ids(32, torch.zeros(2, 2, dtype=torch.int64))
    noisy = torch.randn(2, 12, 4, 4)
    with torch.no_grad():
        found = base_model.predict(base, noisy, torch.tensor([5, 900]), conditioning, ids)
    assert found.shape == noisy.shape


def test_adapter_that_is_not_there_is_named(plugin: ModuleType, weights_dir: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"pytorch_lora_weights.safetensors; rerun"):
        plugin.load_pipeline(
            tiny_settings(plugin, weights_dir),
            dtype=torch.float32,
            device="cpu",
            adapter_dir=weights_dir,
        )


@pytest.mark.parametrize(
    ("change", "family", "words"),
    [
        ({"shift_factor": 0.1}, "sd", "shift_factor 0.1"),
        ({"latents_mean": [0.0] * 12, "latents_std": [1.0] * 12}, "sd", "for 12 channels"),
        ({"latents_mean": [0.0] * 12, "latents_std": [1.0] * 12}, "sdxl", "for 12 channels"),
    ],
)
def test_latents_that_no_pipeline_would_undo_are_refused(
    change: dict[str, Any], family: Any, words: str
) -> None:
    vae = build_vae()
    vae.register_to_config(**change)
    with pytest.raises(ValueRangeError, match=f"{words}.*quant_conv"):
        base_model.require_known_latents(vae, family, "somewhere")


def test_unknown_dtype_is_named() -> None:
    assert base_model.torch_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(ValueRangeError, match="'float16'"):
        base_model.torch_dtype("float16")


def test_random_weights_are_the_same_every_time(tmp_path: Path) -> None:
    plugin = registry.find(registry.BASE_MODELS, "tiny_sd15")
    digests = [plugin.input_digest(tiny_settings(plugin, tmp_path / name)) for name in ("a", "b")]
    assert digests[0] == digests[1]
    assert np.isfinite(load(plugin, tmp_path / "a").unet.conv_in.weight.numpy()).all()
