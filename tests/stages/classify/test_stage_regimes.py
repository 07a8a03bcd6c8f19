"""Every regime and both tasks."""

import hashlib

import pytest

from pipeline.contracts import PredictionRecord
from pipeline.settings import ProtectedConfig
from stages.classify import stage as classify
from tests.stages.classify.parts import CONFIG, LABELS, METRICS, SHORT, run


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
                "all_real",
            ),
            "references": (CONFIG.model.model_copy(),),
            "ratios": (0, 2),
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
    "all_real",
    "reference/vit",
    "ratio/0",
    "ratio/2/good",
)


def test_every_regime_is_scored_in_both_tasks(full):
    scores, output, _ = full
    shortcuts = ("metadata_only", "intensity_only", "always_tumor")
    arms = {*TRAINED, *(f"baseline/{name}" for name in shortcuts)}
    for metric in ("accuracy", "class_accuracy", "class_auroc", "class_ece"):
        assert {arm for arm, m, group in scores if (m, group) == (metric, "all")} == arms
    synthetic = {arm: scores[arm, "accuracy", "all"].n_synthetic for arm in TRAINED}
    assert synthetic == dict(zip(TRAINED, (0, 36, 18, 18, 0, 0, 0, 0, 36), strict=True))
    assert output.notes["ratios"] == dict.fromkeys(LABELS, 6)  # of the 12 that the arm has
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
    assert len(classes) == len(rows) / 2 == 12 * 30
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
