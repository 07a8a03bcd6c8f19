"""The configs that need no download start: every fault that a check finds is found here."""

from pathlib import Path

import pytest

from pipeline.run import checks, config, plan

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("name", ["smoke", "mini"])
def test_a_config_for_a_laptop_has_nothing_in_its_way(name: str, tmp_path: Path) -> None:
    settings = config.load(CONFIGS / f"{name}.yaml")
    assert checks.problems(plan.plan(settings), settings, tmp_path) == []


def test_a_rank_above_a_layers_width_is_found_before_anything_runs(tmp_path: Path) -> None:
    changed = ["base_model.name=tiny_sd15", "finetune.lora_rank=64"]
    settings = config.load(CONFIGS / "smoke.yaml", changed)
    found = checks.problems(plan.plan(settings), settings, tmp_path)
    assert any("rank 64 of unet is larger than its layer" in line for line in found)
