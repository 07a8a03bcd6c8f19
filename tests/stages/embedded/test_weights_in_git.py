"""The trained weights in git: small, whole, with cards, and at home in diffusers."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from stages.components.judge.network import Judge
from stages.embedded import judge_build, vlm_build
from stages.embedded.base_data import captions_of
from stages.embedded.build import BASES, NAMES
from stages.embedded.corpora import truth
from stages.embedded.corpora.truth import TruthCorpus
from stages.embedded.vlm_models import FAMILIES, Family

EMBEDDED = Path(__file__).parents[3] / "data" / "embedded"
# /like/this, but not the end of a URL, of a relative path or of a token
ABSOLUTE = re.compile(r"(?<![\w:/.<~-])/(?:[\w.-]+/)+[\w.-]+|[A-Z]:\\\\")
PIPELINES = {"tiny_sd15": StableDiffusionPipeline, "tiny_sdxl": StableDiffusionXLPipeline}


def test_all_weights_together_stay_within_40_mb() -> None:
    sizes = [path.stat().st_size for path in EMBEDDED.rglob("*.safetensors")]
    assert sizes
    assert sum(sizes) <= 40e6


def test_no_file_names_a_folder_of_the_machine_that_made_it() -> None:
    assert ABSOLUTE.search('{"_name_or_path": "/home/someone/cache/vae"}')
    assert not ABSOLUTE.search("https://example.org/a/b/c and data/embedded/tiny_sd15")
    files = [path for path in sorted(EMBEDDED.rglob("*")) if path.is_file()]
    assert len(files) > 20
    for path in files:
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            data = data[8 : 8 + int.from_bytes(data[:8], "little")]  # the header
        found = ABSOLUTE.search(data.decode("utf-8"))
        assert found is None, (path, found)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_it_is_and_where_the_phantoms_come_from(name: str) -> None:
    card = (EMBEDDED / name / "README.md").read_text(encoding="utf-8")
    assert "ICBM" in card
    assert "research" in card
    assert f"mrisynth embedded build {name}" in card


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_plain_diffusers_samples_a_head_and_not_noise(name: str) -> None:
    pipeline = PIPELINES[name].from_pretrained(EMBEDDED / name)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        captions_of("t1", "axial")[0],
        num_inference_steps=8,
        guidance_scale=2.0,
        height=128,
        width=128,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    pixels = np.asarray(image.convert("L"), dtype=np.float64)
    corners = np.concatenate(
        [pixels[:12, :12], pixels[:12, -12:], pixels[-12:, :12], pixels[-12:, -12:]]
    )
    assert corners.mean() < 25  # air
    assert pixels[48:80, 48:80].mean() > corners.mean() + 30  # brain


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> TruthCorpus:
    """Slices of phantoms that none of the weights has seen."""
    folder = tmp_path_factory.mktemp("phantoms")
    truth.build(folder, "test", 5, 128, 2, print)
    return truth.read(folder, "test", 5, 128).brains()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_vlm_sees_planes_and_tumours(family: Family, brains: TruthCorpus) -> None:
    scores = vlm_build.evaluate(EMBEDDED / family, family, brains)
    accuracy = {row["field"]: row["accuracy"]["value"] for row in scores}
    assert accuracy["orientation"] > 0.9
    assert accuracy["tumor"] > 0.65  # not the side: one of these subjects has it off the midline


@pytest.mark.slow
def test_the_judge_sees_planes_tumours_and_sides(brains: TruthCorpus) -> None:
    rows = judge_build.evaluate(Judge.load(EMBEDDED / "judge"), brains)
    value = {row["field"]: row["value"] for row in rows if row["slices"] == "all"}
    assert value["orientation"] > 0.9
    assert value["presence"] > 0.7
    assert value["side"] > 0.6
