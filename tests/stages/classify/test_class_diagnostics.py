import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from stages.classify import class_diagnostics
from stages.classify.class_diagnostics import METRICS, ClassPredictions
from stages.classify.scores import summarise_runs

LABELS = ("notumor", "glioma", "pituitary")


def random_judged(runs=1, n=60, seed=0):
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 3
    raw = rng.random((runs, n, 3)) + 0.5 * np.eye(3)[targets]
    return ClassPredictions(raw / raw.sum(axis=2, keepdims=True), targets, LABELS)


def value(predictions, metric):
    return float(predictions.draws(metric, np.ones((1, len(predictions.targets))))[0])


def test_metrics_equal_scikit_learn():
    predictions = random_judged()
    weights = np.random.default_rng(1).integers(1, 4, (4, 60)).astype(float)
    truth, said = np.eye(3)[predictions.targets], predictions.probability[0]
    named = said.argmax(axis=1)
    for k, row in enumerate(weights):
        expected = {
            "class_accuracy": (row * (named == predictions.targets)).sum() / row.sum(),
            "class_balanced_accuracy": balanced_accuracy_score(
                predictions.targets, named, sample_weight=row
            ),
            "class_auroc": roc_auc_score(truth, said, average="macro", sample_weight=row),
            "class_auprc": average_precision_score(truth, said, average="macro", sample_weight=row),
            "class_brier": (row * ((said - truth) ** 2).sum(axis=1)).sum() / row.sum(),
        }
        for metric, wanted in expected.items():
            assert predictions.draws(metric, weights)[k] == pytest.approx(wanted, rel=1e-9), metric


def test_certainty_that_is_right_costs_nothing():
    targets = np.arange(6) % 3
    predictions = ClassPredictions(np.eye(3)[targets][None], targets, LABELS)
    values = {metric: value(predictions, metric) for metric in METRICS}
    errors = {"class_ece": 0, "class_brier": 0}
    assert values == pytest.approx({**dict.fromkeys(METRICS, 1.0), **errors})
    wrong = ClassPredictions(np.eye(3)[(targets + 1) % 3][None], targets, LABELS)
    assert value(wrong, "class_ece") == 1
    assert value(wrong, "class_brier") == 2


def test_several_runs_give_their_mean():
    both = random_judged(runs=2)
    each = [ClassPredictions(run[None], both.targets, LABELS) for run in both.probability]
    for metric in METRICS:
        mean = np.mean([value(one, metric) for one in each])
        assert value(both, metric) == pytest.approx(mean), metric
        assert summarise_runs(both)[metric] == pytest.approx([value(one, metric) for one in each])
    assert both.top.probability.shape == (1, 120)


def test_a_draw_without_a_class_has_no_macro_mean():
    predictions = random_judged()
    weights = (predictions.targets != 2).astype(float)[None]
    for metric in ("class_balanced_accuracy", "class_auroc", "class_auprc"):
        assert np.isnan(predictions.draws(metric, weights)[0]), metric


def test_confusion_counts_what_was_named():
    predictions = random_judged(runs=2)
    counts = class_diagnostics.confusion(predictions)
    assert {truth: sum(row.values()) for truth, row in counts.items()} == dict.fromkeys(LABELS, 40)
    right = sum(counts[label][label] for label in LABELS)
    assert right == (predictions.named == predictions.targets).sum()
