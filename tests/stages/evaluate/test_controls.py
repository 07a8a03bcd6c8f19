from pathlib import Path

import numpy as np
import pytest

from stages.components.statistics.cohorts import Item
from stages.evaluate import stage as evaluate
from stages.evaluate.controls import choose_classes, choose_contrasts
from tests.stages.evaluate.parts import CONFIG, run, stand_ins, write_arm, write_slices


def items(label, count, modality="unknown", prefix="train"):
    return [
        Item(f"{prefix}-{label}-{modality}-{k}", Path(), label, f"{prefix}-{k}", modality=modality)
        for k in range(count)
    ]


def test_each_class_alone_has_as_many_slices_as_the_test_mix_at_most():
    train = [*items("notumor", 30), *items("glioma", 12)]
    found = choose_classes(train, {"notumor": 10, "glioma": 10}, (0,))
    assert {name: len(chosen) for name, chosen in found.items()} == {
        "control/notumor": 20,
        "control/glioma": 12,
    }
    assert {item.label for item in found["control/glioma"]} == {"glioma"}


def test_one_class_is_nothing_that_could_be_wrong():
    assert choose_classes(items("glioma", 30), {"glioma": 10}, (0,)) == {}


def test_a_kind_of_few_slices_is_no_control():
    train = [*items("notumor", 30), *items("glioma", 7)]
    assert list(choose_classes(train, {"notumor": 10, "glioma": 10}, (0,))) == ["control/notumor"]


def test_a_contrast_alone_keeps_the_mix_of_classes():
    counts = {"notumor": 6, "glioma": 12}
    train = [
        *items("notumor", 20, "t1"),
        *items("glioma", 20, "t1"),
        *items("notumor", 20, "t2"),
        *items("glioma", 8, "t2"),
    ]
    test = [*items("glioma", 2, "t1", "test"), *items("glioma", 2, "t2", "test")]
    found = choose_contrasts(train, test, counts, (0,))
    mixes = {
        name: [sum(i.label == label for i in chosen) for label in counts]
        for name, chosen in found.items()
    }
    assert mixes == {"control/t1": [6, 12], "control/t2": [4, 8]}
    assert {item.modality for item in found["control/t2"]} == {"t2"}


@pytest.mark.parametrize("modalities", [("unknown", "unknown"), ("t1", "t1"), ("t1", "unknown")])
def test_without_two_known_contrasts_there_is_no_control_of_them(modalities):
    test = [item for m in modalities for item in items("glioma", 2, m, f"test-{m}")]
    assert choose_contrasts(items("glioma", 30, "t1"), test, {"glioma": 4}, (0,)) == {}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    root = tmp_path_factory.mktemp("controls")
    preprocess = write_slices(root / "preprocess", {"train": 30, "test": 24})
    inputs = evaluate.EvaluateInputs(preprocess, {"good": write_arm(root / "good", 3)})
    config = CONFIG.model_copy(update={"metrics": ("kid", "fid", "prdc", "ms_ssim")})
    with stand_ins():
        return run(root, inputs, config)


def test_controls_stand_beside_the_floor(scored):
    scores, _ = scored
    rows = {key for key in scores if key[0].startswith("control/")}
    assert rows == {
        ("control/notumor", "kid", "all"),
        ("control/notumor", "kid", "glioma"),
        ("control/glioma", "kid", "all"),
        ("control/glioma", "kid", "notumor"),
    }


def test_the_wrong_class_is_farther_than_the_floor_and_than_half_of_it(scored):
    scores, _ = scored
    floor, mixed, wrong = (
        scores[arm, "kid", group]
        for arm, group in (
            ("real", "all"),
            ("control/notumor", "all"),
            ("control/notumor", "glioma"),
        )
    )
    assert floor.value < mixed.value < wrong.value
    assert (mixed.n_real, mixed.n_synthetic) == (48, 30)
    assert (wrong.n_real, wrong.n_synthetic) == (24, 24)


def test_controls_have_draws_and_no_p(scored):
    scores, output = scored
    assert scores["control/glioma", "kid", "all"].p is None
    with np.load(output.root / "bootstrap.npz", allow_pickle=False) as draws:
        assert draws["kid/blocks/all/control/glioma"].shape == (40,)
