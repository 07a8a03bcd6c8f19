"""The refiner on random weights, in the layout of SDXL's."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import registry
from pipeline.errors import MissingWeightsError, ValueRangeError
from pipeline.settings import GenerateConfig
from stages.components.diffusion.sampling import Sampler, build_sampler
from tests.fabricate import pipelines

PROMPTS = ["tumor: yes; size: large", "tumor: no"]
PLUGIN = registry.find(registry.REFINERS, "sdxl_refiner")
BASE = registry.find(registry.BASE_MODELS, "sdxl")
STEPS = 5


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def refiner_dir(weights_dir: Path) -> Path:
    """One text encoder, and an aesthetic score among the time ids."""
    from diffusers import DDIMScheduler, StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    folder = weights_dir / "refiner"
    tokenizer = pipelines.build_tokenizer(weights_dir / "tokenizer_2", pad_token="!")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        like = dict(pipelines.build_unet("sdxl").config)
        unet = UNet2DConditionModel.from_config(
            like
            | {
                "cross_attention_dim": pipelines.TEXT_WIDTH,
                "projection_class_embeddings_input_dim": 5 * 8 + pipelines.TEXT_WIDTH,
            }
        )
        StableDiffusionXLImg2ImgPipeline(
            vae=pipelines.build_vae(),
            text_encoder=None,
            text_encoder_2=CLIPTextModelWithProjection(pipelines.text_config(tokenizer)),
            tokenizer=None,
            tokenizer_2=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        ).save_pretrained(folder)
    return folder


def build(weights_dir: Path, model: Path | None, **changes: Any) -> Sampler:
    pipeline = BASE.load_pipeline(
        pipelines.tiny_settings(BASE, weights_dir), dtype=torch.float32, device="cpu"
    )
    refiner, start = None, changes.pop("start", 0.6)
    if model is not None:
        settings = PLUGIN.Settings(model=str(model), start=start)
        loaded = PLUGIN.load_pipeline(settings, pipeline, device="cpu", dtype=torch.float32)
        refiner = (loaded, settings.start)
    given: dict[str, Any] = {
        "scheduler": "ddim",
        "image_size": 32,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "batch_size": 2,
    }
    config = GenerateConfig(**(given | changes))
    return build_sampler(pipeline, PROMPTS, config, refiner=refiner)


def difference(a: Any, b: Any) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_model_that_refines_itself_changes_nothing(weights_dir: Path) -> None:
    """DDIM keeps no memory of earlier steps, so three and two steps are five."""
    whole, _ = build(weights_dir, None).draw(PROMPTS, [1, 2])
    split, _ = build(weights_dir, weights_dir / "random_sdxl").draw(PROMPTS, [1, 2])
    assert difference(whole, split) <= 1


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver_multistep", "euler_ancestral"])
def test_refiner_does_the_steps_after_its_start(
    weights_dir: Path, refiner_dir: Path, scheduler: str
) -> None:
    sampler = build(weights_dir, refiner_dir, scheduler=scheduler)
    calls: list[tuple[str, float]] = []
    for name, pipeline in (("base", sampler.pipeline), ("refiner", sampler.refiner.pipeline)):
        pipeline.unet.register_forward_pre_hook(
            lambda module, given, name=name: calls.append((name, float(given[1])))
        )
    together, faults = sampler.draw(PROMPTS, [1, 2])
    assert [name for name, _ in calls] == ["base"] * 3 + ["refiner"] * 2
    assert [level for _, level in calls] == sorted((t for _, t in calls), reverse=True)
    assert [level >= 400 for _, level in calls] == [True] * 3 + [False] * 2
    assert faults == [None, None]
    alone, _ = sampler.draw(PROMPTS[1:], [2])
    assert difference(alone[0], together[1]) <= 1
    plain, _ = build(weights_dir, None, scheduler=scheduler).draw(PROMPTS, [1, 2])
    assert difference(plain, together) > 8


@pytest.mark.parametrize(("start", "own"), [(0.9999, 0), (0.01, 5)])
def test_start_that_leaves_no_step_is_refused(
    weights_dir: Path, refiner_dir: Path, start: float, own: int
) -> None:
    with pytest.raises(ValueRangeError, match=rf"start {start} leaves {own} of 5 steps"):
        build(weights_dir, refiner_dir, start=start)


def test_refiner_of_other_latents_is_refused(weights_dir: Path, refiner_dir: Path) -> None:
    pipeline = BASE.load_pipeline(
        pipelines.tiny_settings(BASE, weights_dir), dtype=torch.float32, device="cpu"
    )
    pipeline.unet.register_to_config(in_channels=4)
    with pytest.raises(ValueRangeError, match=r"latents of 12 channels.*have 4"):
        PLUGIN.load_pipeline(
            PLUGIN.Settings(model=str(refiner_dir)), pipeline, device="cpu", dtype=torch.float32
        )


def test_check_names_what_is_missing(weights_dir: Path, refiner_dir: Path, tmp_path: Path) -> None:
    assert PLUGIN.check(PLUGIN.Settings(model=str(refiner_dir))) == []
    (line,) = PLUGIN.check(PLUGIN.Settings())
    assert "stabilityai/stable-diffusion-xl-refiner-1.0" in line
    assert "hf download" in line
    gone = PLUGIN.Settings(model=str(tmp_path / "gone"))
    with pytest.raises(MissingWeightsError, match="gone"):
        PLUGIN.load_pipeline(gone, None, device="cpu", dtype=torch.float32)

    copy = tmp_path / "copy"
    shutil.copytree(refiner_dir, copy)
    settings = PLUGIN.Settings(model=str(copy))
    before = PLUGIN.input_digest(settings)
    index = copy / "model_index.json"
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert "'FluxPipeline'" in PLUGIN.check(settings)[0]
    assert PLUGIN.input_digest(settings) != before
    index.unlink()
    assert "model_index.json is missing" in PLUGIN.check(settings)[0]
    (copy / "unet" / "config.json").unlink()
    assert "lack unet/config.json" in PLUGIN.check(settings)[0]
