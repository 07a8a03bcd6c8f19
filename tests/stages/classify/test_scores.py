"""Intervals of scores: they count subjects, not slices."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.contracts import SliceRecord
from stages.classify import scores
from stages.classify.diagnostics import Predictions
from stages.components.statistics import proportions
from stages.components.statistics.cohorts import Item

NUM_GROUPS, PER_GROUP = 40, 8


@pytest.fixture(scope="module")
def tester():
    names = [(group, k) for group in range(NUM_GROUPS) for k in range(PER_GROUP)]
    items = [
        Item(f"{g}-{k}", Path("x.png"), "glioma" if g % 2 else "notumor", f"g{g}") for g, k in names
    ]
    records = [
        SliceRecord(
            slice_id=item.name, subject_id=item.group, group_id=item.group, source="s",
            split="test", label=item.label, modality=("t1", "t2")[number % 2], image_path="x.png",
            original="x", original_width_px=8, original_height_px=8,
        )
        for number, item in enumerate(items)
    ]  # fmt: skip
    return scores.Tester(items, records, experiment="e", seed=0)


def say(tester, is_right):
    """Predict so that the slices of some groups are right, all of them."""
    truth = np.asarray([item.label != "notumor" for item in tester.test])
    rows = np.repeat(is_right, PER_GROUP)
    return Predictions(np.where(rows, truth, ~truth)[None].astype(float), truth)


def test_slices_that_agree_within_subjects_narrow_no_interval(tester):
    is_right = np.arange(NUM_GROUPS) % 10 < 7
    tester.add("a", say(tester, is_right), num_synthetic=0)
    rows = {(r.metric, r.group): r for r in tester.score("a")}
    row = rows["accuracy", "all"]
    low, high = proportions.wilson(28, NUM_GROUPS, confidence=0.95)
    assert (row.value, row.n_real, row.num_groups) == (pytest.approx(0.7), 320, 40)
    assert row.high - row.low == pytest.approx(high - low, rel=0.15)
    by_contrast = rows["accuracy", "contrast:t1"]
    assert (by_contrast.n_real, by_contrast.num_groups) == (160, 40)
    assert by_contrast.high - by_contrast.low == pytest.approx(high - low, rel=0.15)


def test_equal_arms_differ_by_none_but_not_for_certain(tester):
    is_right = np.arange(NUM_GROUPS) % 10 < 7
    for name in ("b", "c"):
        tester.add(name, say(tester, is_right), num_synthetic=0)
    rows = {row["metric"]: row for row in tester.differences("b", "c")}
    accuracy = rows["accuracy"]
    assert (accuracy["num_groups"], accuracy["num_negative_groups"]) == (40, 20)
    assert (rows["specificity"]["num_groups"], rows["sensitivity"]["num_groups"]) == (20, 20)
    assert accuracy["value"] == 0 and accuracy["low"] < -0.05 and accuracy["high"] > 0.05
    assert accuracy["permutation_p"] == 1
    worse = say(tester, np.arange(NUM_GROUPS) % 10 < 5)
    tester.add("d", worse, num_synthetic=0)
    rows = {row["metric"]: row for row in tester.differences("d", "b")}
    assert rows["accuracy"]["value"] == pytest.approx(-0.2)
    assert rows["accuracy"]["permutation_p"] == pytest.approx(2 / 2**8)  # eight groups differ


def test_a_perfect_ranking_is_not_certain(tester):
    tester.add("e", say(tester, np.ones(NUM_GROUPS, dtype=bool)), num_synthetic=0)
    rows = {(r.metric, r.group): r for r in tester.score("e")}
    auroc = rows["auroc", "all"]
    low, high = proportions.wilson(20, 20, confidence=0.95)  # groups of the rarer kind
    assert (auroc.value, auroc.high) == (1, high) and auroc.low == pytest.approx(low, abs=0.02)
