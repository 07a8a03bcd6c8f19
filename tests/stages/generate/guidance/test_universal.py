"""Guidance by a judge that takes brightness for a lesion, on random weights and in closed form."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pipeline import registry
from pipeline.contracts import TumorReport
from pipeline.errors import MissingWeightsError, ValueRangeError
from pipeline.settings import GenerateConfig
from stages.components.diffusion import sampling
from stages.components.diffusion.sampling import Sampler, build_sampler
from stages.components.judge.network import JudgeConfig, Naming, coordinates, mean_under
from stages.generate.guidance._loss import location_loss
from stages.generate.guidance._universal import LocationGuidance, predict_clean, signal_share
from tests.fabricate.pipelines import tiny_settings

PROMPTS = ["tumor: yes; size: large", "tumor: no", "tumor: yes; size: small"]
REPORTS = [
    TumorReport(tumor=True, side="left", size="large", orientation="axial"),
    TumorReport(tumor=False, orientation="axial"),
    TumorReport(tumor=True, side="right", size="small", orientation="coronal"),
]
SEEDS = [11, 12, 13]
PLUGIN = registry.find(registry.GUIDANCE, "location")


class BrightIsLesion:
    """Names the side by the middle of what is bright; knows no regions."""

    config = JudgeConfig()

    def describe(self, images: Tensor) -> tuple[Tensor, Naming]:
        lesion = 10 * (images.mean(dim=1, keepdim=True) - 0.2)
        across = mean_under(lesion.sigmoid(), coordinates(lesion))[:, :1]
        side = torch.cat([-4 * across, 4 * across, 0 * across - 2], dim=1)
        return lesion, Naming(0 * across, side, 0 * across)


def guide(**changes: Any) -> LocationGuidance:
    given = {"strength": 1.0, "share_of_steps": 1.0, "image_size": 32}
    return LocationGuidance(BrightIsLesion(), **(given | changes))


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def build(name: str, weights_dir: Path, guidance: LocationGuidance | None, **more: Any) -> Sampler:
    plugin = registry.find(registry.BASE_MODELS, name)
    pipeline = plugin.load_pipeline(
        tiny_settings(plugin, weights_dir), dtype=torch.float32, device="cpu"
    )
    given: dict[str, Any] = {
        "scheduler": "dpmsolver_multistep",
        "image_size": 32,
        "num_inference_steps": 4,
        "guidance_scale": 2.0,
        "batch_size": 2,
    }
    config = GenerateConfig(**(given | more))
    return build_sampler(pipeline, PROMPTS, config, guidance=guidance)


def judged(images: Any) -> list[float]:
    """Losses of final images, as the judge sees them."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return location_loss(*BrightIsLesion().describe(pixels), REPORTS, ()).tolist()


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_images_come_nearer_to_what_was_asked_and_depend_on_their_seeds_alone(
    name: str, weights_dir: Path
) -> None:
    sampler = build(name, weights_dir, guide())
    together, faults = sampler.draw(PROMPTS, SEEDS, REPORTS)
    assert faults == [None] * 3
    alone, _ = sampler.draw(PROMPTS[1:2], SEEDS[1:2], REPORTS[1:2])
    # 2: rounding, which differs with the batch, goes through a gradient too.
    assert np.abs(alone[0].astype(int) - together[1]).max() <= 2
    plain, _ = build(name, weights_dir, None).draw(PROMPTS, SEEDS)
    assert all(a < b for a, b in zip(judged(together), judged(plain), strict=True))
    assert np.abs(together.astype(int) - plain).max() > 8
    assert "forward" not in vars(sampler.pipeline.unet)


@pytest.mark.parametrize("changes", [{"guidance_scale": 1.0}, {"scheduler": "euler"}])
def test_no_strength_is_no_guidance(weights_dir: Path, changes: dict[str, Any]) -> None:
    plain, _ = build("sd15", weights_dir, None, **changes).draw(PROMPTS, SEEDS)
    weak = build("sd15", weights_dir, guide(strength=1e-9), **changes)
    assert np.abs(weak.draw(PROMPTS, SEEDS, REPORTS)[0].astype(int) - plain).max() <= 1


def test_share_of_steps_and_reduction(weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, shapes = AutoencoderKL.decode, []

    def decode(self: Any, z: Tensor, **given: Any) -> Any:
        shapes.append(tuple(z.shape))
        return original(self, z, **given)

    monkeypatch.setattr(AutoencoderKL, "decode", decode)
    sampler = build("sd15", weights_dir, guide(share_of_steps=0.6, reduction=2))
    sampler.draw(PROMPTS[:1], SEEDS[:1], REPORTS[:1])
    # Of four steps; 4 px of latents by twos. Then the image itself.
    assert shapes == [(1, 12, 2, 2)] * 3 + [(1, 12, 4, 4)]


class FlatVae:
    """Decodes latents to themselves, three channels of them."""

    config = SimpleNamespace(get=lambda name: None, scaling_factor=1.0)
    dtype = torch.float32

    def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (latents[:, :3],)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("copies", [1, 2])
def test_clean_prediction_moves_by_the_formula(kind: str, copies: int) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    noisy = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))

    class Unet(torch.nn.Module):
        def forward(self, sample: Tensor, timestep: Any, return_dict: bool = True) -> Any:
            return (0.1 * sample,)

    pipeline = SimpleNamespace(unet=Unet(), vae=FlatVae(), scheduler=scheduler, guidance_scale=3.0)
    guidance, timestep = guide(strength=0.05), torch.tensor(600)
    with guidance.steering(pipeline, REPORTS[:2], 1), torch.no_grad():
        (output,) = pipeline.unet(torch.cat([noisy] * copies), timestep, return_dict=False)
    assert not output.requires_grad
    torch.testing.assert_close(output[:2], output[-2:])  # both halves are moved alike
    signal = signal_share(scheduler, timestep)
    assert signal == pytest.approx(float(scheduler.alphas_cumprod[600]), rel=1e-6)
    before = predict_clean(scheduler, noisy, 0.1 * noisy, signal)
    after = predict_clean(scheduler, noisy, output[:2], signal)
    loss = guidance.judge_latents(pipeline.vae, before, REPORTS[:2])
    size = (after - before).square().mean(dim=(1, 2, 3)).sqrt()
    expected = 0.05 * math.sqrt(1 - signal) * loss.clamp(max=1)
    torch.testing.assert_close(size, expected, rtol=1e-3, atol=1e-5)
    assert (guidance.judge_latents(pipeline.vae, after, REPORTS[:2]) < loss).all()


def test_clean_prediction_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    generator = torch.Generator().manual_seed(0)
    noisy, output = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    for kind in ("epsilon", "v_prediction"):
        scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
        scheduler.set_timesteps(10)
        timestep = scheduler.timesteps[3]
        expected = scheduler.step(output, timestep, noisy).pred_original_sample
        found = predict_clean(scheduler, noisy, output, signal_share(scheduler, timestep))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_noise_levels_between_steps_and_at_the_end() -> None:
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(7)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        assert signal_share(scheduler, timestep) == pytest.approx(
            1 / (1 + float(sigma) ** 2), rel=1e-3
        )
    ends = sampling.build_scheduler("ddim", {"rescale_betas_zero_snr": True})
    assert signal_share(ends, 999) == pytest.approx(2.0**-24)


def test_other_predictions_are_refused() -> None:
    scheduler = SimpleNamespace(config=SimpleNamespace(prediction_type="sample"))
    steering = guide().steering(SimpleNamespace(scheduler=scheduler), REPORTS, 1)
    with pytest.raises(ValueRangeError, match="found 'sample'; leave guidance out"), steering:
        pass


def test_an_absent_judge_is_named(tmp_path: Path) -> None:
    settings = PLUGIN.Settings(judge=str(tmp_path / "gone"))
    with pytest.raises(MissingWeightsError, match=r"gone \(looked for .*leave generate.guidance"):
        PLUGIN.load(settings, device="cpu")


def test_a_judges_folder_is_read(tmp_path: Path) -> None:
    from stages.components.judge.network import Judge, JudgeConfig, JudgeNet

    config = JudgeConfig(image_size=64)
    Judge(JudgeNet(config), config).save(tmp_path)
    assert PLUGIN.check(PLUGIN.Settings(judge=str(tmp_path))) == []
    settings = PLUGIN.Settings(judge=str(tmp_path), strength=0.7, share_of_steps=0.5, reduction=2)
    loaded = PLUGIN.load(settings, device="cpu")
    assert (loaded.image_size, loaded.strength, loaded.share_of_steps) == (64, 0.7, 0.5)
    logits, _ = loaded.judge.describe(torch.zeros(1, 3, 64, 64))
    assert logits.shape == (1, 1, 64, 64)
