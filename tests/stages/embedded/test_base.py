"""The tiny base models: layouts, resume, tokenizer, and an ordinary diffusers folder at the end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from stages.components.networks.weights import Family
from stages.embedded import base_build, base_data, base_training
from stages.embedded.vae import new_vae

FAMILIES: tuple[Family, ...] = ("sd", "sdxl")


@pytest.fixture
def data() -> base_training.BaseTrainingSet:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(8, 12, 4, 4, generator=generator)
    choices = np.tile(np.arange(3, dtype=np.intp), (8, 1))
    found = torch.zeros(8, 1, 4, 4, dtype=torch.bool)
    found[6:, :, 1, 2] = True
    places = torch.zeros(len(CAPTIONS), 77, dtype=torch.bool)
    places[:, 5:8] = True
    return base_training.BaseTrainingSet(
        mean, 0.1 * torch.ones_like(mean), choices, CAPTIONS, places, found, 6
    )


CAPTIONS = base_data.captions_of("t1ce", "coronal")


def settings(family: Family, steps: int) -> base_training.BaseTraining:
    """Two steps on healthy heads, the rest on both kinds."""
    return base_training.BaseTraining(
        family=family,
        healthy_steps=2,
        findings_steps=steps - 2,
        batch_size=2,
        warmup_steps=10,
        checkpoint_every=1,
    )


def test_captions_are_worded_like_those_of_the_caption_stage() -> None:
    assert CAPTIONS[0] == (
        "tumor: no; orientation: coronal; general description: "
        "T1-weighted contrast-enhanced coronal brain MRI without a tumor"
    )
    assert all("tumor" in text and "oronal" in text for text in CAPTIONS)


def test_the_tokenizer_knows_the_schema_word_by_word_and_spells_the_rest() -> None:
    tokenizer = base_data.build_tokenizer()
    assert len(tokenizer) < 2000
    known = "tumor: yes; location: left frontal lobe; size: small; shape: lobulated"
    assert len(tokenizer.tokenize(known)) == 17
    unknown = "zyxwv café"
    ids = tokenizer(unknown).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == unknown
    assert tokenizer.model_max_length == 77


def test_findings_come_in_after_the_healthy_heads(data: base_training.BaseTrainingSet) -> None:
    plan = base_training.BaseTraining("sd", healthy_steps=50, findings_steps=50, warmup_steps=10)

    def rows(steps: range) -> set[int]:
        draws = [base_training.draw_rows(data, plan, s, np.random.default_rng(s)) for s in steps]
        return {int(row) for draw in draws for row in draw}

    assert rows(range(50)) == set(range(6))
    assert rows(range(50, 100)) == set(range(8))
    rates = [base_training.rate_at(plan, step) for step in (9, 49, 50, 59, 99)]
    assert rates[0] == plan.learning_rate
    assert rates[3] == plan.findings_learning_rate
    assert rates[1] < 0.03 * rates[0]
    assert rates[4] < 0.03 * rates[3]
    assert rates[2] == 0.1 * rates[3]


def test_timesteps_are_stratified_and_those_in_focus_come_more_often() -> None:
    config = base_training.scheduler_config()
    alphas = DDPMScheduler.from_config(config).alphas_cumprod
    snr = (alphas / (1 - alphas)).numpy()
    low, high = base_training.FOCUS_SNR
    is_focus = (snr >= low) & (snr <= high)

    def draw(focus: float) -> np.ndarray:
        plan = base_training.BaseTraining("sd", 0, 1, batch_size=1000, focus=focus)
        return base_training.draw_timesteps(plan, alphas, np.random.default_rng(0)).numpy()

    assert np.array_equal(np.sort(draw(1.0)), np.arange(1000))
    expected = 3 * is_focus.sum() / (3 * is_focus.sum() + (~is_focus).sum())
    assert is_focus[draw(3.0)].mean() == pytest.approx(expected, abs=0.005)
    assert 0.3 < is_focus.mean() < 0.7


def test_training_goes_on_from_given_weights(
    data: base_training.BaseTrainingSet, tmp_path: Path
) -> None:
    tokenizer = base_data.build_tokenizer()
    start = (
        base_training.new_unet("sdxl", 12, 4),
        base_training.new_text_encoders("sdxl", tokenizer),
    )
    expected = {name: value.clone() for name, value in start[0].state_dict().items()}
    plan = base_training.BaseTraining("sdxl", 0, 0)
    unet, _ = base_training.train(
        data, tokenizer, 32, tmp_path, plan, "cpu", lambda line: None, start
    )
    for name, value in unet.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_training_ends_with_the_same_weights(
    family: Family, data: base_training.BaseTrainingSet, tmp_path: Path
) -> None:
    tokenizer = base_data.build_tokenizer()
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    lines: list[str] = []

    def run(folder: str, steps: int) -> torch.nn.Module:
        made = base_training.train(
            data, tokenizer, 32, tmp_path / folder, settings(family, steps), "cpu", lines.append
        )
        return torch.nn.ModuleList([made[0], *made[1]])

    expected = run("whole", 4)
    run("broken", 3)
    resumed = run("broken", 4)
    assert f"{family}: going on at step 3" in lines
    for name, value in expected.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_diffusers_loads_what_is_saved_and_samples_it(family: Family, tmp_path: Path) -> None:
    tokenizer = base_data.build_tokenizer()
    unet = base_training.new_unet(family, 12, 4)
    encoders = base_training.new_text_encoders(family, tokenizer)
    base_build.save_pipeline(tmp_path, family, new_vae(32), tokenizer, unet, list(encoders))
    kind = StableDiffusionPipeline if family == "sd" else StableDiffusionXLPipeline
    pipeline = kind.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    image = pipeline(CAPTIONS[0], num_inference_steps=2, height=32, width=32).images[0]
    assert image.size == (32, 32)
    weights = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert weights < 20e6  # float16
