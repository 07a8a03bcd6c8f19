import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import checks, config, plan
from pipeline.contracts import (
    Artifact,
    ArtifactWriter,
    Context,
    PluginConfig,
    PredictionRecord,
    ScoreRecord,
    SliceRecord,
    SyntheticRecord,
    TumorReport,
    write_records,
)
from pipeline.errors import ConfigError, DataError, SampleSizeError, SplitLeakError, TrainingError
from pipeline.settings import ClassifyConfig, ProtectedConfig
from stages import classify
from stages.components import classification

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
METRICS = ("accuracy", "sensitivity", "specificity", "auroc", "auprc", "ece", "brier")
LABELS = ("notumor", "glioma", "pituitary")
SIZE = 32
CONFIG = ClassifyConfig(
    model=PluginConfig(
        name="vit",
        settings={"patch_size": 8, "embed_dim": 16, "num_heads": 2, "fc_dim": 32, "dropout": 0.1},
    ),
    image_size=SIZE,
    batch_size=8,
    max_steps=120,
    learning_rate=5e-3,
    warmup_steps=5,
    validate_every=40,
)

SHORT = CONFIG.model_copy(update={"max_steps": 6, "validate_every": 2})


def draw(rng, label, is_faithful=True):
    image = rng.integers(0, 80, (SIZE, SIZE))
    if label != "notumor" and is_faithful:
        image[4:20, 4:20] = 220
    return image.astype(np.uint8)


def write_slices(root, counts):
    root.mkdir()
    rng = np.random.default_rng(1)
    records = []
    for split, count in counts.items():
        for label in LABELS:
            for k in range(count):
                name = f"{split}-{label}-{k}"
                Image.fromarray(draw(rng, label)).convert("RGB").save(root / f"{name}.png")
                records.append(
                    SliceRecord(
                        slice_id=name,
                        subject_id=f"{label}-{k}",
                        group_id=f"{split}-{label}-{k // 2}",
                        source=("clinic", "archive")[k % 2],
                        split=split,
                        label=label,
                        orientation=("axial", "sagittal")[k % 2],
                        modality=("t1", "flair", "unknown")[k % 3],
                        image_path=f"{name}.png",
                        original=name,
                        original_width_px=300 + k,
                        original_height_px=300,
                    )
                )
    write_records(root / "records.jsonl", records)
    return Artifact(root, "p", SliceRecord, {})


def write_arm(root, count=12, is_faithful=True, labels=LABELS):
    root.mkdir()
    rng = np.random.default_rng(2)
    records = []
    for label in labels:
        for k in range(count):
            name = f"{label}-{k}"
            image = Image.fromarray(draw(rng, label, is_faithful)).convert("RGB")
            image.save(root / f"{name}.png")
            records.append(
                SyntheticRecord(
                    image_id=name,
                    image_path=f"{name}.png",
                    prompt="",
                    requested=TumorReport(),
                    label=label,
                    seed=0,
                    adapter_digest=None,
                )
            )
    write_records(root / "records.jsonl", records)
    return Artifact(root, root.name, SyntheticRecord, {})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    return classify.ClassifyInputs(
        preprocess=write_slices(root / "preprocess", {"train": 20, "val": 5, "test": 10}),
        generate={
            "good": write_arm(root / "good"),
            "poor": write_arm(root / "poor", is_faithful=False),
        },
    )


def run(root, inputs, config=CONFIG, seed=0):
    root.mkdir(exist_ok=True)
    output = ArtifactWriter(root, ScoreRecord)
    context = Context("test", seed, "cpu", "float32", 1, root, lambda line: None)
    classify.run(config, inputs, output, context)
    scores = list(Artifact(root, "c", ScoreRecord, {}).records())
    return {(s.arm, s.metric, s.group): s for s in scores}, output


@pytest.fixture(scope="module")
def scored(tmp_path_factory, inputs):
    return run(tmp_path_factory.mktemp("scored"), inputs)


def test_every_arm_and_baseline_has_every_metric(scored):
    scores, _ = scored
    arms = {arm for arm, _, _ in scores}
    assert arms == {"real", "good", "poor", "baseline/metadata_only", "baseline/intensity_only"}
    for arm in arms:
        for metric in METRICS:
            score = scores[arm, metric, "all"]
            assert score.low <= score.value <= score.high, (arm, metric)
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
    truth = np.asarray([label != "notumor" for label in sorted(LABELS) for _ in range(5)])
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


def test_faithful_slices_teach_and_unfaithful_ones_do_not(scored):
    scores, _ = scored
    assert scores["real", "accuracy", "all"].value > 0.9
    assert scores["good", "accuracy", "all"].value > 0.9
    assert scores["poor", "accuracy", "all"].value < 0.8


def test_file_size_says_nothing_here_and_brightness_all(scored):
    scores, _ = scored
    assert scores["baseline/metadata_only", "auroc", "all"].value < 0.7
    assert scores["baseline/intensity_only", "accuracy", "all"].value > 0.95


def test_differences_to_real_are_paired(scored):
    scores, output = scored
    differences = output.notes["differences"]
    assert set(differences) == {
        "poor - good",
        *(
            f"{arm} - real"
            for arm in ("good", "poor", "baseline/metadata_only", "baseline/intensity_only")
        ),
    }
    rows = {row["metric"]: row for row in differences["poor - real"]}
    expected = scores["poor", "accuracy", "all"].value - scores["real", "accuracy", "all"].value
    assert rows["accuracy"]["value"] == pytest.approx(expected)
    assert rows["accuracy"]["high"] < 0
    assert rows["accuracy"]["mcnemar"]["p"] < 0.05
    assert set(rows) == set(METRICS)


def test_confusion_counts_every_test_slice(scored):
    counts = scored[1].notes["confusion"]["real"]
    assert sum(counts.values()) == 30
    assert counts["true_positive"] + counts["false_negative"] == 20


def test_predictions_are_kept_for_every_test_slice(scored):
    _, output = scored
    lines = (output.root / "predictions.jsonl").read_text().splitlines()
    rows = [PredictionRecord.model_validate_json(line) for line in lines]
    assert len(rows) == 5 * 30
    assert all(row.slice_id.startswith("test-") for row in rows)


def test_selection_is_by_validation_loss(scored):
    _, output = scored
    row = json.loads((output.root / "runs" / "binary" / "real-0.json").read_text())
    chosen = row["steps"].index(row["chosen_step"])
    assert row["val_loss"][chosen] == min(row["val_loss"])
    assert output.notes["selection"]["real"] == [
        {"step": row["chosen_step"], "val_loss": min(row["val_loss"])}
    ]


def test_test_slices_are_judged_once_per_run_and_after_training(tmp_path, inputs, monkeypatch):
    judged = []
    predict = classification.predict

    def watched(network, images, device):
        judged.append(len(images))
        return predict(network, images, device)

    monkeypatch.setattr(classification, "predict", watched)
    run(tmp_path / "out", inputs, SHORT)
    assert judged == [15, 15, 15, 30] * 3  # three validations, then the test slices


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, inputs, monkeypatch):
    config = SHORT.model_copy(update={"num_seeds": 2})
    _, whole = run(tmp_path / "whole", inputs, config)
    train, calls = classification.train, []

    def killed(*args, **kwargs):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(kwargs["seed"])
        return train(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(classification, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", inputs, config)

    def counted(*args, **kwargs):
        calls.append(kwargs["seed"])
        return train(*args, **kwargs)

    monkeypatch.setattr(classification, "train", counted)
    _, resumed = run(tmp_path / "killed", inputs, config)
    assert len(calls) == 6  # three arms of two seeds, none of them twice
    assert len(set(calls)) == 2  # arms share the seeds, and so their initial weights
    for path in sorted(whole.root.rglob("*.json*")):
        other = resumed.root / path.relative_to(whole.root)
        assert other.read_bytes() == path.read_bytes()
    assert resumed.notes == whole.notes


@pytest.fixture(scope="module")
def full(tmp_path_factory, inputs):
    """Every regime and both tasks on one generate arm, with a protected attribute."""
    root = tmp_path_factory.mktemp("full")
    table = root / "table.csv"
    rows = [f"{label}-{k},{'fm'[k % 2]}" for label in LABELS for k in range(10)]
    table.write_text("\n".join(["subject_id,sex", *rows]))
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    config = SHORT.model_copy(
        update={
            "tasks": ("binary", "four_class"),
            "regimes": (
                "real",
                "synthetic",
                "real_and_synthetic",
                "synthetic_then_real",
                "real_with_augmentation",
            ),
            "references": (CONFIG.model.model_copy(),),
            "protected": ProtectedConfig(attribute="sex", table=str(table), sha256=digest),
        }
    )
    one = classify.ClassifyInputs(inputs.preprocess, {"good": inputs.generate["good"]})
    return (*run(root / "out", one, config), config)


TRAINED = (
    "real",
    "good",
    "real_and_synthetic/good",
    "synthetic_then_real/good",
    "real_with_augmentation",
    "reference/vit",
)


def test_every_regime_is_scored_in_both_tasks(full):
    scores, output, _ = full
    arms = {*TRAINED, "baseline/metadata_only", "baseline/intensity_only"}
    for metric in ("accuracy", "class_accuracy", "class_auroc", "class_ece"):
        assert {arm for arm, m, group in scores if (m, group) == (metric, "all")} == arms
    synthetic = {arm: scores[arm, "accuracy", "all"].n_synthetic for arm in TRAINED}
    assert synthetic == dict(zip(TRAINED, (0, 36, 18, 18, 0, 0), strict=True))
    for label in LABELS:
        assert scores["real", "class_sensitivity", label].n_real == 10
        assert ("real", "class_auroc", label) in scores
    assert {task: set(use["looks"]) for task, use in output.notes["test_use"].items()} == {
        task: {f"{arm}, seed 0" for arm in TRAINED} for task in ("binary", "four_class")
    }


def test_regimes_are_compared_with_each_other(full):
    _, output, _ = full
    metrics = {
        row["metric"] for row in output.notes["differences"]["real_and_synthetic/good - good"]
    }
    assert {"accuracy", "auroc", "class_accuracy", "class_auroc"} <= metrics


def test_a_reference_of_the_same_network_is_the_real_arm_again(full):
    scores, _, _ = full
    for metric in METRICS:
        real = scores["real", metric, "all"].value
        assert scores["reference/vit", metric, "all"].value == real


def test_predictions_of_classes_sum_to_one(full):
    _, output, _ = full
    lines = (output.root / "predictions.jsonl").read_text().splitlines()
    rows = [PredictionRecord.model_validate_json(line) for line in lines]
    classes = [row for row in rows if row.task == "four_class"]
    assert len(classes) == len(rows) / 2 == 8 * 30
    for row in classes:
        assert sum(row.probabilities.values()) == pytest.approx(1)
        assert row.probability == pytest.approx(1 - row.probabilities["notumor"])
    counts = output.notes["four_class"]["confusion"]["real"]
    assert sum(sum(row.values()) for row in counts.values()) == 30


def test_fairness_gaps_are_scored_at_the_operating_point(full):
    scores, output, _ = full
    rates = output.notes["fairness"]["rates"]["baseline/intensity_only"]
    assert {name: row["n"] for name, row in rates.items()} == {"f": 15, "m": 15}
    score = scores["baseline/intensity_only", "independence_gap", "protected:sex"]
    assert score.value == pytest.approx(abs(rates["f"]["called"] - rates["m"]["called"]))
    assert not score.higher_is_better


def test_test_slices_that_trained_are_refused(tmp_path, inputs):
    slices = write_slices(tmp_path / "p", {"train": 2, "val": 2, "test": 2})
    rows = [row.model_copy(update={"group_id": "g"}) for row in slices.records()]
    write_records(slices.root / "records.jsonl", rows)
    with pytest.raises(SplitLeakError, match="group 'g' is in both"):
        run(tmp_path / "out", classify.ClassifyInputs(slices, {}))


def test_validation_of_one_kind_has_no_operating_point_and_says_so(tmp_path):
    slices = write_slices(tmp_path / "p", {"train": 4, "val": 2, "test": 4})
    rows = [r for r in slices.records() if (r.split, r.label) != ("val", "notumor")]
    write_records(slices.root / "records.jsonl", rows)
    config = SHORT.model_copy(update={"baselines": ()})
    scores, output = run(tmp_path / "out", classify.ClassifyInputs(slices, {}), config)
    assert "no operating point" in output.notes["warnings"][0]
    assert output.notes["operating_points"] == {}
    assert ("real", "accuracy_at_operating_point", "all") not in scores
    assert ("real", "accuracy", "all") in scores


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("classify.model.settings.patch_size=12", "model.settings.patch_size: .*128 px., found 12"),
        ("classify.model.settings.num_heads=3", "model.settings.embed_dim: .* num_heads 3, found"),
        (
            "classify.references=[{name: vit, settings: {patch_size: 7}}]",
            r"references\.0\..*found 7",
        ),
        ("classify.references=[vit, vit]", "classify.references: 'vit' stands twice"),
        ("classify.model=metadata_only", "expected a network, found the baseline 'metadata_only'"),
        ("classify.regimes=[synthetic]", r"expected 'real' among them, .* found \['synthetic'\]"),
    ],
)
def test_what_cannot_be_trained_stops_at_the_config(override, message):
    with pytest.raises(ConfigError, match=message):
        config.load(CONFIGS / "mini.yaml", [override])


def test_check_names_a_table_that_is_absent_or_another(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("subject_id,sex")
    settings = config.load(CONFIGS / "mini.yaml")
    for path, found in (
        (table, "table.csv has [0-9a-f]{64}"),
        (tmp_path / "gone", "no file '.*gone'"),
    ):
        protected = ProtectedConfig(attribute="sex", table=str(path), sha256="0" * 64)
        section = settings.classify.model_copy(update={"protected": protected})
        asked = plan.Node("classify", (), section, {}, {}, {}, "digest")
        lines = checks.problems([asked], settings, tmp_path)
        assert any(re.search(f"classify.protected.*{found}", line) for line in lines)


def test_a_table_that_is_absent_stops_before_training(tmp_path, inputs):
    protected = ProtectedConfig(attribute="sex", table=str(tmp_path / "gone"), sha256="0" * 64)
    with pytest.raises(DataError, match=r"no file '.*gone'"):
        run(tmp_path / "out", inputs, SHORT.model_copy(update={"protected": protected}))


def test_matched_n_may_be_set(tmp_path, inputs):
    config = CONFIG.model_copy(update={"num_images": 18, "max_steps": 2, "baselines": ()})
    _, output = run(tmp_path / "out", inputs, config)
    assert output.counts["n_train_notumor"] == 6


def test_more_slices_than_an_arm_has_are_refused(tmp_path, inputs):
    config = CONFIG.model_copy(update={"num_images": 60})
    message = "num_images is 60, 20 of each of 3 classes, but 'good' holds 12 of 'notumor'"
    with pytest.raises(SampleSizeError, match=message):
        run(tmp_path / "out", inputs, config)


def test_arms_without_a_tumour_are_refused(tmp_path, inputs):
    arm = write_arm(tmp_path / "arm", labels=("notumor",))
    few = classify.ClassifyInputs(inputs.preprocess, {"arm": arm})
    with pytest.raises(SampleSizeError, match=r"found in common \['notumor'\] .*glioma: arm has 0"):
        run(tmp_path / "out", few)


def test_no_test_slices_are_refused(tmp_path):
    slices = write_slices(tmp_path / "p", {"train": 2, "val": 2})
    with pytest.raises(SampleSizeError, match="at least 2 test slices, found 0"):
        run(tmp_path / "out", classify.ClassifyInputs(slices, {}))


def test_no_validation_slices_are_refused(tmp_path):
    slices = write_slices(tmp_path / "p", {"train": 4, "test": 4})
    with pytest.raises(TrainingError, match="val has 0 slices"):
        run(tmp_path / "out", classify.ClassifyInputs(slices, {}))
