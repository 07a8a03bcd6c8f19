"""The configs that need no download start: every fault that a check finds is found here."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.contracts import LABELS
from pipeline.run import checks, config, plan
from stages.classify.data import LEAST_GROUPS_TO_CHOOSE
from stages.preprocess.audit import LEAST_NEGATIVE_GROUPS
from stages.preprocess.sources import phantom
from stages.preprocess.splits import Member, assign_splits

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("name", ["smoke", "mini"])
def test_a_config_for_a_laptop_has_nothing_in_its_way(name: str, tmp_path: Path) -> None:
    settings = config.load(CONFIGS / f"{name}.yaml")
    assert checks.problems(plan.plan(settings), settings, tmp_path) == []


def test_mini_has_subjects_enough_to_test_and_to_choose(tmp_path: Path) -> None:
    """By what is planned, before any phantom is made."""
    settings = config.load(CONFIGS / "mini.yaml")
    section = settings.preprocess
    source = phantom.Settings.model_validate(section.source.settings)
    orders = phantom.plan_subjects(source, settings.seed, tmp_path)
    members = [Member(o.subject_id, o.subject_id, o.label, None, o.modality) for o in orders]
    splits = assign_splits(
        members, val_fraction=section.val_fraction, test_fraction=section.test_fraction,
        keep_published_test=True, leaked_files="drop_test", test_as_val=0, seed=settings.seed,
    ).splits  # fmt: skip
    count = Counter((splits[m.slice_id], m.label) for m in members)
    assert count["test", "notumor"] >= LEAST_NEGATIVE_GROUPS
    assert count["val", "notumor"] >= LEAST_GROUPS_TO_CHOOSE
    assert sum(count["val", label] for label in LABELS[1:]) >= LEAST_GROUPS_TO_CHOOSE
    most = section.max_per_class
    assert most is not None
    for label in LABELS:
        assert count["train", label] * section.slices_per_scan >= most, label


def test_a_rank_above_a_layers_width_is_found_before_anything_runs(tmp_path: Path) -> None:
    changed = ["base_model.name=tiny_sd15", "finetune.lora_rank=64"]
    settings = config.load(CONFIGS / "smoke.yaml", changed)
    found = checks.problems(plan.plan(settings), settings, tmp_path)
    assert any("rank 64 of unet is larger than its layer" in line for line in found)
