import json

import numpy as np
import pytest
from PIL import Image

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
from pipeline.errors import SampleSizeError, TrainingError
from pipeline.settings import ClassifyConfig
from stages import classify
from stages.components import classification

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
                        subject_id=None,
                        group_id=f"{split}-{label}-{k // 2}",
                        source="test",
                        split=split,
                        label=label,
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
        for metric in ("accuracy", "sensitivity", "specificity", "auroc"):
            score = scores[arm, metric, "all"]
            assert score.low <= score.value <= score.high
            assert score.higher_is_better
            assert score.stage == "classify"
        assert {group for a, m, group in scores if (a, m) == (arm, "accuracy")} == {"all", *LABELS}


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
        f"{arm} - real"
        for arm in ("good", "poor", "baseline/metadata_only", "baseline/intensity_only")
    }
    rows = {row["metric"]: row for row in differences["poor - real"]}
    expected = scores["poor", "accuracy", "all"].value - scores["real", "accuracy", "all"].value
    assert rows["accuracy"]["value"] == pytest.approx(expected)
    assert rows["accuracy"]["high"] < 0
    assert rows["accuracy"]["mcnemar"]["p"] < 0.05
    assert set(rows) == {"accuracy", "sensitivity", "specificity", "auroc"}


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
    row = json.loads((output.root / "runs" / "real-0.json").read_text())
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


def test_a_record_of_other_test_slices_is_not_taken(tmp_path):
    path = tmp_path / "run.json"
    kept = classify.Run((1,), (0.5,), (0.4,), 1, (0.2,), ("a",))
    classify.write_run(path, kept)
    assert classify.read_run(path, ["a"]) == kept
    assert classify.read_run(path, ["b"]) is None
    assert classify.read_run(tmp_path / "absent.json", ["a"]) is None


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
