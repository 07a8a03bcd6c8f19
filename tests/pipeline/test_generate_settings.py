"""Settings of generation: what is refused, and what is no part of a digest."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.run import config, plan


def build(base_model: str = "tiny_sdxl", **generate: Any) -> Any:
    raw = {
        "experiment": "e",
        "base_model": base_model,
        "preprocess": {"source": "phantom", "image_size": 128},
        "caption": {"vlm": "truth"},
        "finetune": {"resolution": 128},
        "generate": {"image_size": 128, **generate},
        "evaluate": {},
        "classify": {"image_size": 128},
        "report": {},
    }
    return config.build(raw, where="test")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"batch_size": 0}, "generate.batch_size: expected a number >= 1 or 'auto', found 0"),
        (
            {"batch_size": "all"},
            "generate.batch_size: expected a number >= 1 or 'auto', found 'all'",
        ),
        ({"guidance_rescale": 2}, "generate.guidance_rescale: expected a number <= 1, found 2"),
        ({"num_shards": 0}, "generate.num_shards: expected a number >= 1, found 0"),
        ({"refiner": "sdxl_refinery"}, "no refiner named 'sdxl_refinery'; did you mean"),
        (
            {"refiner": {"name": "sdxl_refiner", "settings": {"start": 1.5}}},
            "generate.refiner.settings.start: expected a number < 1, found 1.5",
        ),
        (
            {"counterfactuals": 9, "num_images": 8},
            "generate.counterfactuals: expected at most num_images (8), found 9",
        ),
        (
            {"counterfactuals": 1, "prompts_from": "test_captions"},
            "generate.counterfactuals: expected 0 with prompts_from 'test_captions', since sides",
        ),
        (
            {"counterfactuals": 2, "prompt_style": "label_only"},
            "generate.counterfactuals: expected 0 with prompt_style 'label_only', which states no",
        ),
        ({"guidance": "place"}, "no guidance named 'place'; available: location"),
        (
            {"guidance": {"name": "location", "settings": {"strength": 0}}},
            "generate.guidance.settings.strength: expected a number > 0, found 0",
        ),
        ({"withhold_copies": "farthest"}, "no rule for copies named 'farthest'"),
        ({"scheduler": "heun"}, "generate.scheduler: expected 'dpmsolver_multistep', 'ddim'"),
    ],
)
def test_unknown_values_are_named(setting: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**setting)
    assert any(line in problem for problem in caught.value.problems), caught.value.problems


def test_refiner_needs_sdxl() -> None:
    generate = build(refiner="sdxl_refiner").arms[0].generate
    assert generate.refiner.settings["start"] == 0.8
    with pytest.raises(ConfigError, match=r"'tiny_sd15'.*found 'sdxl_refiner'"):
        build("tiny_sd15", refiner="sdxl_refiner")
    with pytest.raises(ConfigError, match="no base model named 'tiny_sd51'"):
        build("tiny_sd51", refiner="sdxl_refiner")


def generations(**generate: Any) -> list[Any]:
    return [node for node in plan.plan(build(**generate)) if node.stage == "generate"]


def test_copies_are_withheld_by_a_rule_that_reads_the_slices() -> None:
    assert build(withhold_copies=False) == build()
    for node in generations():
        assert node.inputs["preprocess"] is None
        assert not any("withholding" in path for path in node.source_files)
        assert "stages/components/features/nearest.py" not in node.source_files
    on = build(withhold_copies=True)
    assert on.arms[0].generate.withhold_copies.name == "nearest_slice"
    dumped = yaml.safe_load(config.dump(on))
    assert config.build(dumped, where="test") == on
    for node in generations(withhold_copies=True):
        assert node.inputs["preprocess"].stage == "preprocess"
        assert "stages/generate/withholding/nearest_slice.py" in node.source_files
        assert "stages/components/features/nearest.py" in node.source_files


def test_a_judge_that_guides_is_an_input(tmp_path: Path) -> None:
    def recipe() -> Any:
        (node, *_) = generations(
            guidance={"name": "location", "settings": {"judge": str(tmp_path)}}
        )
        return node

    before = recipe()
    assert "stages/generate/guidance/_loss.py" in before.source_files
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert recipe().digest != before.digest
    assert all("guidance" not in path for node in generations() for path in node.source_files)


def test_automatic_batch_size_survives_the_check_against_the_number_of_images() -> None:
    assert build(batch_size="auto", num_images=4).arms[0].generate.batch_size == "auto"


def test_number_of_processes_is_no_part_of_the_digest() -> None:
    def digest(**generate: Any) -> str:
        (first, *_) = [n for n in plan.plan(build(**generate)) if n.stage == "generate"]
        return first.digest

    assert digest(num_shards=4) == digest()
    assert digest(scheduler="unipc") != digest()
    assert build(num_shards=4).arms[0].generate.num_shards == 4
