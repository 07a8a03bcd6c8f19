import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.errors import SampleSizeError
from stages.components import diagnostics
from stages.components.diagnostics import METRICS, Judged

TRUTH = np.array([1, 1, 1, 1, 0, 0], bool)
ONCE = np.ones((1, 6))


def judged(*rows):
    return Judged(np.asarray(rows, float), TRUTH)


RUN = (0.9, 0.8, 0.5, 0.2, 0.1, 0.6)  # three of four tumours, one of two others


def value(run, metric):
    return float(diagnostics.metric_draws(run, metric, ONCE)[0])


def test_outcomes_are_counted():
    assert diagnostics.confusion(judged(RUN)) == {
        "true_positive": 3,
        "false_negative": 1,
        "false_positive": 1,
        "true_negative": 1,
    }
    assert sum(diagnostics.confusion(judged(RUN, RUN)).values()) == 12


def test_proportions_are_those_of_the_counts():
    assert value(judged(RUN), "accuracy") == pytest.approx(4 / 6)
    assert value(judged(RUN), "sensitivity") == pytest.approx(3 / 4)
    assert value(judged(RUN), "specificity") == pytest.approx(1 / 2)


def test_several_runs_give_their_mean():
    perfect = TRUTH.astype(float)
    both = judged(RUN, perfect)
    assert value(both, "accuracy") == pytest.approx((4 / 6 + 1) / 2)
    assert diagnostics.summarise_runs(both)["accuracy"] == pytest.approx([4 / 6, 1])


def test_auroc_equals_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.random(80) < 0.4
    scores = np.round(rng.random(80) + 0.3 * truth, 1)  # with ties
    weights = rng.integers(0, 4, (5, 80)).astype(float)
    found = diagnostics.auroc_draws(Judged(scores[None], truth), weights)
    expected = [roc_auc_score(truth, scores, sample_weight=row) for row in weights]
    assert found == pytest.approx(expected, rel=1e-9)


def test_auroc_of_order_and_of_its_reverse():
    assert value(judged(TRUTH.astype(float)), "auroc") == 1
    assert value(judged(1.0 - TRUTH), "auroc") == 0
    assert value(judged(np.full(6, 0.3)), "auroc") == 0.5


def test_a_draw_without_a_kind_has_no_value():
    weights = np.array([[1, 1, 1, 1, 0, 0]], float)
    assert np.isnan(diagnostics.metric_draws(judged(RUN), "specificity", weights)[0])
    assert np.isnan(diagnostics.metric_draws(judged(RUN), "auroc", weights)[0])
    assert set(METRICS) == {"accuracy", "sensitivity", "specificity", "auroc"}


def test_wilson_equals_the_published_example():
    # Newcombe, Statistics in Medicine 1998, table I: 81 of 263 and 0 of 20.
    assert diagnostics.wilson(81, 263, confidence=0.95) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert diagnostics.wilson(0, 20, confidence=0.95) == pytest.approx((0, 0.1611), abs=1e-4)


def test_wilson_of_nothing_is_refused():
    with pytest.raises(SampleSizeError, match="at least 1 slice, found 0"):
        diagnostics.wilson(0, 0, confidence=0.95)


def test_mcnemar_is_the_exact_binomial():
    perfect = judged(TRUTH.astype(float))
    found = diagnostics.mcnemar(perfect, judged(RUN))
    assert found == pytest.approx({"only_first_right": 2, "only_second_right": 0, "p": 0.5})
    assert diagnostics.mcnemar(perfect, perfect)["p"] == 1
