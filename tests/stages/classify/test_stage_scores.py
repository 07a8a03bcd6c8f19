"""Scores, baselines and comparisons of a whole run, and how it goes on after a kill."""

import json

import numpy as np
import pytest

from pipeline import registry
from pipeline.contracts import PredictionRecord
from tests.stages.classify.parts import (
    CONFIG,
    LABELS,
    METRICS,
    SHORT,
    counting,
    list_trained,
    run,
)

BASELINES = tuple(
    f"baseline/{name}" for name in ("metadata_only", "intensity_only", "always_tumor")
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory, inputs):
    return run(tmp_path_factory.mktemp("scored"), inputs)


def test_every_arm_and_baseline_has_every_metric(scored):
    scores, _ = scored
    arms = {arm for arm, _, _ in scores}
    assert arms == {"real", "good", "poor", *BASELINES}
    for arm in arms:
        for metric in METRICS:
            score = scores[arm, metric, "all"]
            if (arm, metric[:5]) != ("baseline/always_tumor", "auroc"):  # 0.5 in every draw
                assert score.low <= score.value <= score.high, (arm, metric)
                assert score.low < score.high, (arm, metric)
            assert score.higher_is_better == (metric not in ("ece", "brier"))
            assert score.stage == "classify"
        for metric in ("accuracy", "sensitivity", "specificity"):
            assert 0 <= scores[arm, f"{metric}_at_operating_point", "all"].value <= 1
        groups = {"axial", "sagittal", "contrast:t1", "contrast:flair"}
        groups |= {"source:clinic", "source:archive"}
        assert {g for a, m, g in scores if (a, m) == (arm, "accuracy")} == {"all", *LABELS, *groups}
        assert {g for a, m, g in scores if (a, m) == (arm, "auroc")} == {"all", *groups}


def test_groups_divide_the_test_slices(scored):
    scores, _ = scored
    parts = [scores["real", "accuracy", group] for group in ("axial", "sagittal")]
    assert sum(part.n_real for part in parts) == 30
    right = sum(part.value * part.n_real for part in parts)
    assert right == pytest.approx(30 * scores["real", "accuracy", "all"].value)


def test_test_use_proves_one_look_by_the_chosen_state(scored):
    _, output = scored
    use = output.notes["test_use"]["binary"]
    assert use["num_slices"] == 30
    assert set(use["looks"]) == {f"{arm}, seed 0" for arm in ("real", "good", "poor")}
    for arm in ("real", "good", "poor"):
        row = json.loads((output.root / "runs" / "binary" / f"{arm}-0.json").read_text())
        look = use["looks"][f"{arm}, seed 0"]
        assert look["looks"] == 1
        assert look["state_sha256"] == row["state_sha256"]
        assert use["sha256"] == row["test_sha256"]


def test_operating_points_come_from_validation(scored):
    _, output = scored
    row = json.loads((output.root / "runs" / "binary" / "poor-0.json").read_text())
    (cut,) = output.notes["operating_points"]["poor"]
    said = np.asarray(row["val_probability"])[:, 1]
    truth = np.asarray([label != "notumor" for label in sorted(LABELS) for _ in range(10)])
    best = max(
        (said[truth] >= c).mean() + (said[~truth] < c).mean() for c in [*said, *(said + 1e-9), 0.5]
    )
    assert (said[truth] >= cut).mean() + (said[~truth] < cut).mean() == pytest.approx(best)


def test_the_operating_point_moves_no_other_score(scored):
    scores, output = scored
    (cut,) = output.notes["operating_points"]["poor"]
    row = json.loads((output.root / "runs" / "binary" / "poor-0.json").read_text())
    said = np.asarray(row["probability"])[:, 1]
    truth = np.asarray(["notumor" not in name for name in row["slice_id"]])
    for metric, level in (("accuracy", 0.5), ("accuracy_at_operating_point", cut)):
        expected = ((said >= level) == truth).mean()
        assert scores["poor", metric, "all"].value == pytest.approx(expected)
    counts = output.notes["confusion"]["poor"]
    assert counts["true_positive"] == ((said >= 0.5) & truth).sum()


def test_calibration_points_hold_every_test_slice(scored):
    curve = scored[1].notes["calibration"]["real"]
    assert sum(point["n"] for point in curve) == 30
    assert all(0 <= point["said"] <= 1 and 0 <= point["true"] <= 1 for point in curve)


def test_numbers_of_slices_stand_in_the_rows(scored):
    scores, output = scored
    assert scores["real", "accuracy", "all"].n_real == 30
    assert scores["real", "sensitivity", "all"].n_real == 20
    assert scores["real", "specificity", "all"].n_real == 10
    assert scores["real", "accuracy", "all"].n_synthetic == 0
    assert scores["good", "accuracy", "all"].n_synthetic == 36
    assert output.counts["n_train_glioma"] == 12


def test_groups_stand_in_the_rows(scored):
    scores, _ = scored

    def count(metric, group="all"):
        row = scores["real", metric, group]
        return row.num_groups, row.num_negative_groups

    assert count("accuracy") == count("auroc") == (15, 5)
    assert (count("sensitivity"), count("specificity")) == ((10, 0), (5, 5))
    assert count("accuracy", "glioma") == (5, 0)


def test_faithful_slices_teach_and_unfaithful_ones_do_not(scored):
    scores, _ = scored
    assert scores["real", "accuracy", "all"].value > 0.9
    assert scores["good", "accuracy", "all"].value > 0.9
    assert scores["poor", "accuracy", "all"].value < 0.8


def test_file_size_says_nothing_here_and_brightness_all(scored):
    scores, _ = scored
    assert scores["baseline/metadata_only", "auroc", "all"].value < 0.7
    assert scores["baseline/intensity_only", "accuracy", "all"].value > 0.95


def test_calling_every_slice_a_tumour_has_their_share(scored):
    scores, _ = scored
    for metric, expected in (("accuracy", 2 / 3), ("auprc", 2 / 3), ("sensitivity", 1.0),
                             ("specificity", 0.0), ("auroc", 0.5)):  # fmt: skip
        assert scores["baseline/always_tumor", metric, "all"].value == pytest.approx(expected)


def test_differences_to_real_are_paired(scored):
    scores, output = scored
    differences = output.notes["differences"]
    assert set(differences) == {
        "poor - good",
        *(f"{arm} - real" for arm in ("good", "poor", *BASELINES)),
    }
    rows = {row["metric"]: row for row in differences["poor - real"]}
    expected = scores["poor", "accuracy", "all"].value - scores["real", "accuracy", "all"].value
    assert rows["accuracy"]["value"] == pytest.approx(expected)
    assert rows["accuracy"]["high"] < 0
    # all five groups without a tumour speak against "poor", and no other one differs
    assert rows["accuracy"]["permutation_p"] == pytest.approx(2 / 2**5)
    assert set(rows) == set(METRICS)


def test_confusion_counts_every_test_slice(scored):
    counts = scored[1].notes["confusion"]["real"]
    assert sum(counts.values()) == 30
    assert counts["true_positive"] + counts["false_negative"] == 20


def test_predictions_are_kept_for_every_test_slice(scored):
    _, output = scored
    lines = (output.root / "predictions.jsonl").read_text().splitlines()
    rows = [PredictionRecord.model_validate_json(line) for line in lines]
    assert len(rows) == 6 * 30
    assert all(row.slice_id.startswith("test-") for row in rows)


def test_selection_is_by_validation_loss(scored):
    _, output = scored
    row = json.loads((output.root / "runs" / "binary" / "real-0.json").read_text())
    chosen = row["steps"].index(row["chosen_step"])
    assert row["val_loss"][chosen] == min(row["val_loss"])
    assert output.notes["selection"]["real"] == [
        {"step": row["chosen_step"], "val_loss": min(row["val_loss"])}
    ]


def test_test_slices_are_judged_once_per_run_and_after_training(tmp_path, inputs, add_file):
    add_file(registry.CLASSIFIERS, "counting")
    run(tmp_path / "out", inputs, counting(tmp_path / "calls"))
    calls = [int(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == [30, 30, 30, 30] * 3  # three validations, then the test slices


def test_arms_share_their_initial_weights_and_seeds_do_not(tmp_path, inputs):
    update = {"num_seeds": 2, "learning_rate": 0.0, "max_steps": 1, "baselines": ()}
    _, output = run(tmp_path / "out", inputs, SHORT.model_copy(update=update))
    looks = output.notes["test_use"]["binary"]["looks"]
    states = {key.split(", ")[1]: set() for key in looks}
    for key, look in looks.items():
        states[key.split(", ")[1]].add(look["state_sha256"])
    assert [len(digests) for digests in states.values()] == [1, 1]
    assert states["seed 0"] != states["seed 1"]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, inputs):
    config = SHORT.model_copy(update={"num_seeds": 2})
    before, after = [], []
    _, whole = run(tmp_path / "whole", inputs, config, progress=after.append)
    trainings = list_trained(after)
    assert len(trainings) == 6  # three arms of two seeds

    def killed(line):
        before.append(line)
        if len(list_trained(before)) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", inputs, config, progress=killed)
    after.clear()
    _, resumed = run(tmp_path / "killed", inputs, config, progress=after.append)
    assert list_trained(after) == trainings[3:]  # none is done twice
    for path in sorted(whole.root.rglob("*.json*")):
        other = resumed.root / path.relative_to(whole.root)
        assert other.read_bytes() == path.read_bytes()
    assert resumed.notes == whole.notes


def test_matched_n_may_be_set(tmp_path, inputs):
    config = CONFIG.model_copy(update={"num_images": 18, "max_steps": 2, "baselines": ()})
    _, output = run(tmp_path / "out", inputs, config)
    assert output.counts["n_train_notumor"] == 6
