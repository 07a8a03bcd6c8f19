from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import registry
from pipeline.settings import FinetuneConfig, GenerateConfig
from stages.components.diffusion import sampling
from stages.components.diffusion.sampling import Sampler, build_sampler
from stages.finetune.adapters.export import save_adapter
from stages.finetune.adapters.lora import add_adapters
from tests.fabricate.pipelines import tiny_settings

PROMPTS = ["tumor: yes; size: large", "tumor: no", "tumor: yes; size: small"]


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def build(name: str, weights_dir: Path, **changes: Any) -> Sampler:
    plugin = registry.find(registry.BASE_MODELS, name)
    pipeline = plugin.load_pipeline(
        tiny_settings(plugin, weights_dir), dtype=torch.float32, device="cpu"
    )
    given: dict[str, Any] = {
        "scheduler": "dpmsolver_multistep",
        "image_size": 32,
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "batch_size": 2,
    }
    config = GenerateConfig(**(given | changes))
    return build_sampler(pipeline, PROMPTS, config)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_image_depends_on_its_prompt_and_seed_alone(name: str, weights_dir: Path) -> None:
    sampler = build(name, weights_dir)
    together, faults = sampler.draw(PROMPTS, [11, 12, 13])
    alone, _ = sampler.draw(PROMPTS[1:2], [12])
    reversed_, _ = sampler.draw(PROMPTS[::-1], [13, 12, 11])
    assert together.dtype == np.uint8
    assert together.shape == (3, 32, 32, 3)
    assert faults == [None] * 3
    # 1: a batch of one and a batch of three round differently.
    assert np.abs(alone[0].astype(int) - together[1]).max() <= 1
    assert np.abs(reversed_[::-1].astype(int) - together).max() <= 1
    assert np.abs(together[0].astype(int) - together[1]).max() > 8


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_plain_diffusers_gives_our_image(name: str, weights_dir: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler

    ours, _ = build(name, weights_dir).draw(PROMPTS[:1], [42])
    plugin = registry.find(registry.BASE_MODELS, name)
    plain = plugin.load_pipeline(
        tiny_settings(plugin, weights_dir), dtype=torch.float32, device="cpu"
    )
    plain.scheduler = DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
    expected = plain(
        PROMPTS[0],
        height=32,
        width=32,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(42),
    ).images[0]
    assert np.abs(np.asarray(expected).astype(int) - ours[0]).max() <= 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dpmsolver_multistep", "DPMSolverMultistepScheduler"),
        ("ddim", "DDIMScheduler"),
        ("euler", "EulerDiscreteScheduler"),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler"),
        ("unipc", "UniPCMultistepScheduler"),
        ("ddpm", "DDPMScheduler"),
    ],
)
def test_schedulers_by_name_keep_the_noise_schedule(
    name: Any, kind: str, weights_dir: Path
) -> None:
    from diffusers import DDIMScheduler

    trained = DDIMScheduler(beta_start=0.0011, beta_schedule="scaled_linear").config
    scheduler = sampling.build_scheduler(name, trained)
    assert type(scheduler).__name__ == kind
    assert scheduler.config.beta_start == 0.0011
    assert scheduler.config.beta_schedule == "scaled_linear"
    sampler = build("sd15", weights_dir, scheduler=name)
    together, faults = sampler.draw(PROMPTS, [11, 12, 13])
    alone, _ = sampler.draw(PROMPTS[1:2], [12])
    assert faults == [None] * 3
    assert np.abs(alone[0].astype(int) - together[1]).max() <= 1
    # What plain diffusers samples with this scheduler, the noise of its steps included.
    plugin = registry.find(registry.BASE_MODELS, "sd15")
    plain = plugin.load_pipeline(
        tiny_settings(plugin, weights_dir), dtype=torch.float32, device="cpu"
    )
    plain.scheduler = type(scheduler).from_config(plain.scheduler.config)
    given = {"height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 5.0}
    image = plain(PROMPTS[1], generator=torch.Generator().manual_seed(12), **given).images[0]
    assert np.abs(np.asarray(image).astype(int) - alone[0]).max() <= 1


def test_latents_are_never_clipped() -> None:
    bare = {"num_train_timesteps": 100}  # a config that leaves the defaults to the class
    for name in ("ddim", "ddpm"):
        assert sampling.build_scheduler(name, bare).config.clip_sample is False
    asked = sampling.build_scheduler("ddim", {**bare, "clip_sample": True})
    assert asked.config.clip_sample is True


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_guidance_rescale_is_that_of_plain_diffusers(name: str, weights_dir: Path) -> None:
    ours, _ = build(name, weights_dir, guidance_rescale=0.7).draw(PROMPTS[:1], [1])
    sampler = build(name, weights_dir)
    unscaled, _ = sampler.draw(PROMPTS[:1], [1])
    given = {"height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 5.0}
    image = sampler.pipeline(
        PROMPTS[0], generator=torch.Generator().manual_seed(1), guidance_rescale=0.7, **given
    ).images[0]
    assert np.abs(np.asarray(image).astype(int) - ours[0]).max() <= 1
    assert np.abs(unscaled.astype(int) - ours).max() > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapter_is_merged_before_compiling(
    weights_dir: Path, tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    plugin = registry.find(registry.BASE_MODELS, "sd15")
    settings = tiny_settings(plugin, weights_dir)
    base = plugin.load(settings, dtype=torch.float32, device="cpu")
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    before = base.unet.get_submodule(name).weight.detach().clone()
    models = add_adapters(base, FinetuneConfig(lora_rank=4, lora_alpha=8.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in models[0].parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    layer = base.unet.get_submodule(name)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = (before + 2.0 * up @ down).detach().to(dtype)  # alpha / rank = 2
    save_adapter(models, tmp_path / "adapter")

    pipeline = plugin.load_pipeline(
        settings, dtype=dtype, device="cpu", adapter_dir=tmp_path / "adapter"
    )
    compiled: list[torch.Tensor] = []
    monkeypatch.setattr(
        diffusers.UNet2DConditionModel,
        "compile_repeated_blocks",
        lambda unet: compiled.append(unet.get_submodule(name).weight),
    )
    config = GenerateConfig(fuse_adapter=True, channels_last=True, compile_blocks=True)
    sampling.prepare(pipeline, config)
    assert not hasattr(pipeline.unet, "peft_config")
    assert compiled[0].dtype == pipeline.unet.dtype == dtype
    # bfloat16: the file's float32 adapter is read as bfloat16, eight bits of it.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(compiled[0].float(), expected.float(), rtol=0, atol=tolerance)
    assert (compiled[0].float() - before).abs().max() > 0.5
    assert pipeline.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert pipeline.vae.dtype == torch.float32


def test_negative_prompt_and_guidance_change_the_image(weights_dir: Path) -> None:
    plain, _ = build("sd15", weights_dir).draw(PROMPTS[:1], [1])
    for changes in ({"negative_prompt": "glioma"}, {"guidance_scale": 1.0}):
        other, _ = build("sd15", weights_dir, **changes).draw(PROMPTS[:1], [1])
        assert np.abs(other.astype(int) - plain).max() > 1, changes


def test_faults_are_found() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[0, 0] = 7
    assert sampling.find_fault(image) == "black"
    image[:] = 90
    image[0, 0] = 92
    assert sampling.find_fault(image) == "constant"
    image[0, 0] = 93
    assert sampling.find_fault(image) is None


def test_nan_is_no_image(weights_dir: Path) -> None:
    sampler = build("sd15", weights_dir)
    torch.nn.init.constant_(sampler.pipeline.vae.decoder.conv_out.bias, float("nan"))
    _, faults = sampler.draw(PROMPTS[:1], [1])
    assert faults == ["not finite"]
