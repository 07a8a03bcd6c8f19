"""`transformers`, the captioner for whatever reads images: five families, tiny and random."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.contracts import SliceRecord
from stages.components.captioning.questions import read_answer
from stages.components.captioning.vlms import transformers as plugin
from stages.components.captioning.vlms._local_captioner import LocalCaptioner
from tests.fabricate.any_vlm import KINDS, write_checkpoint


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any")
    for kind in KINDS:
        write_checkpoint(folder / kind, kind)
    return folder


@pytest.fixture
def noise(tmp_path: Path, slices: list[SliceRecord]) -> list[Path]:
    rng = np.random.default_rng(0)
    for item in slices:
        pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).convert("RGB").save(tmp_path / item.image_path)
    return [tmp_path / item.image_path for item in slices]


def load(folder: Path, **settings: Any) -> LocalCaptioner:
    chosen = plugin.Settings(model=str(folder), device_map="cpu", retries=0, **settings)
    assert plugin.check(chosen) == []
    captioner = plugin.load(chosen)
    assert isinstance(captioner, LocalCaptioner)
    return captioner


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("kind", KINDS)
def test_answers_in_the_schema_and_alike_in_any_batch(
    kind: str, checkpoints: Path, slices: list[SliceRecord], noise: list[Path]
) -> None:
    captioner = load(checkpoints / kind, prompt="poster", batch_size=3)  # prompts of any length
    together = captioner.describe(slices[:3], noise[:3])
    for text in together:
        assert isinstance(text, str) and read_answer(text).fits
    alone = [captioner.describe([s], [p])[0] for s, p in zip(slices[:3], noise[:3], strict=True)]
    assert together == alone
    assert len(set(together)) > 1  # it saw something, or read


def test_arguments_reach_processors_with_defaults_of_their_own(
    checkpoints: Path, slices: list[SliceRecord]
) -> None:
    """InternVL's cuts slices into patches whatever its image processor says."""
    lengths = []
    for settings in ({}, {"processor": {"crop_to_patches": False}}):
        captioner = load(checkpoints / "internvl", **settings)
        image, words = Image.new("RGB", (96, 64)), captioner._word(slices[0])
        inputs = captioner._see([words], [image])
        lengths.append(int((inputs["input_ids"] == captioner.processor.image_token_id).sum()))
    assert lengths[1] == 4 < lengths[0]


def test_what_reads_no_images_is_named(checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    write_checkpoint(folder, "idefics3")
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_mistral"}))
    (line,) = plugin.check(plugin.Settings(model=str(folder)))
    assert "names the model type 'llava_mistral', which transformers 5." in line
    assert "Take a conversion (often -hf)" in line


def test_a_library_that_a_processor_needs_is_named_before_anything_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "smol"
    write_checkpoint(folder, "idefics3")
    (folder / "config.json").write_text(json.dumps({"model_type": "smolvlm"}))
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "num2words" else there(name)
    )
    (line,) = plugin.check(plugin.Settings(model=str(folder)))
    assert line == (
        "the processor of 'smolvlm' needs the package num2words, which is not installed: "
        "pip install num2words"
    )
