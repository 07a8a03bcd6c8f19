import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from pipeline.errors import SampleSizeError
from stages.classify import diagnostics
from stages.classify.diagnostics import Predictions
from stages.classify.scores import summarise_runs
from stages.components.statistics import proportions

TRUTH = np.array([1, 1, 1, 1, 0, 0], bool)
ONCE = np.ones((1, 6))


def predictions(*rows):
    return Predictions(np.asarray(rows, float), TRUTH)


RUN = (0.9, 0.8, 0.5, 0.2, 0.1, 0.6)  # three of four tumours, one of two others


def value(run, metric):
    return float(run.draws(metric, ONCE)[0])


def test_outcomes_are_counted():
    assert diagnostics.confusion(predictions(RUN)) == {
        "true_positive": 3,
        "false_negative": 1,
        "false_positive": 1,
        "true_negative": 1,
    }
    assert sum(diagnostics.confusion(predictions(RUN, RUN)).values()) == 12


def test_proportions_are_those_of_the_counts():
    assert value(predictions(RUN), "accuracy") == pytest.approx(4 / 6)
    assert value(predictions(RUN), "sensitivity") == pytest.approx(3 / 4)
    assert value(predictions(RUN), "specificity") == pytest.approx(1 / 2)


def test_several_runs_give_their_mean():
    perfect = TRUTH.astype(float)
    both = predictions(RUN, perfect)
    assert value(both, "accuracy") == pytest.approx((4 / 6 + 1) / 2)
    assert summarise_runs(both)["accuracy"] == pytest.approx([4 / 6, 1])


def test_auroc_equals_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.random(80) < 0.4
    scores = np.round(rng.random(80) + 0.3 * truth, 1)  # with ties
    weights = rng.integers(0, 4, (5, 80)).astype(float)
    found = diagnostics.auroc_draws(Predictions(scores[None], truth), weights)
    expected = [roc_auc_score(truth, scores, sample_weight=row) for row in weights]
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_mirrored_contrast_ruins_the_plain_auroc_and_not_the_one_within():
    """A classifier that sees nothing but contrast, learnt where T2 was nearly all tumours.

    In the test T2 has few: the plain area falls below chance, though nothing was learnt wrongly.
    """
    contrasts = np.repeat(["t2", "t1ce"], [10, 20])
    truth = np.asarray([True] * 4 + [False] * 6 + [True] * 16 + [False] * 4)
    by_contrast = np.where(contrasts == "t2", 0.91, 0.7)
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 3, (5, 30)).astype(float)
    blind = Predictions(by_contrast[None], truth, contrasts=contrasts)
    assert (blind.draws("auroc", np.ones((1, 30))) < 0.4).all()
    assert blind.draws("auroc_within_contrast", weights) == pytest.approx(np.full(5, 0.5))
    # What sees the tumour as well ranks every pair of one contrast rightly.
    sees = Predictions((by_contrast + 0.05 * truth)[None], truth, contrasts=contrasts)
    assert sees.draws("auroc_within_contrast", weights) == pytest.approx(np.ones(5))
    assert (sees.draws("auroc", weights) < 1).all()


def test_contrasts_count_by_their_pairs():
    contrasts = np.asarray(["t1", "t1", "t2", "t2", "t2", "unknown"])
    truth = np.asarray([True, False, True, False, False, True])
    scores = np.asarray([0.9, 0.1, 0.5, 0.6, 0.4, 0.0])  # t1: 1 of 1; t2: 1 of 2
    found = Predictions(scores[None], truth, contrasts=contrasts)
    assert value(found, "auroc_within_contrast") == pytest.approx(2 / 3)
    for few in (None, np.asarray(["t1"] * 6), np.asarray(["unknown"] * 5 + ["t1"])):
        alone = Predictions(scores[None], truth, contrasts=few)
        assert np.isnan(value(alone, "auroc_within_contrast"))


def test_auroc_of_order_and_of_its_reverse():
    assert value(predictions(TRUTH.astype(float)), "auroc") == 1
    assert value(predictions(1.0 - TRUTH), "auroc") == 0
    assert value(predictions(np.full(6, 0.3)), "auroc") == 0.5


def test_a_draw_without_a_kind_has_no_value():
    weights = np.array([[1, 1, 1, 1, 0, 0]], float)
    assert np.isnan(predictions(RUN).draws("specificity", weights)[0])
    assert np.isnan(predictions(RUN).draws("auroc", weights)[0])
    none = np.array([[0, 0, 0, 0, 1, 1]], float)
    assert np.isnan(predictions(RUN).draws("auprc", none)[0])


def test_wilson_equals_the_published_example():
    # Newcombe, Statistics in Medicine 1998, table I: 81 of 263 and 0 of 20.
    assert proportions.wilson(81, 263, confidence=0.95) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert proportions.wilson(0, 20, confidence=0.95) == pytest.approx((0, 0.1611), abs=1e-4)


def test_wilson_of_nothing_is_refused():
    with pytest.raises(SampleSizeError, match="at least 1 slice, found 0"):
        proportions.wilson(0, 0, confidence=0.95)


@pytest.mark.parametrize(
    ("metric", "reference"), [("auprc", average_precision_score), ("brier", brier_score_loss)]
)
def test_weighted_draws_equal_scikit_learn(metric, reference):
    rng = np.random.default_rng(1)
    truth = rng.random(80) < 0.4
    scores = np.clip(np.round(rng.random(80) * 0.7 + 0.3 * truth, 1), 0, 1)  # with ties
    weights = rng.integers(0, 4, (5, 80)).astype(float)
    found = Predictions(scores[None], truth).draws(metric, weights)
    expected = [reference(truth, scores, sample_weight=row) for row in weights]
    assert found == pytest.approx(expected, rel=1e-9)


def test_average_precision_of_what_knows_nothing_is_the_share_of_tumours():
    assert value(predictions(np.full(6, 0.3)), "auprc") == pytest.approx(4 / 6)


def test_calibration_error_in_closed_form():
    assert value(predictions(TRUTH.astype(float)), "ece") == 0
    assert value(predictions(1.0 - TRUTH), "ece") == 1
    assert value(predictions(np.full(6, 0.55)), "ece") == pytest.approx(4 / 6 - 0.55)
    # Two bins: three at 0.9 of which three are true, three at 0.2 of which one is.
    two = predictions([0.9, 0.9, 0.9, 0.2, 0.2, 0.2])
    assert value(two, "ece") == pytest.approx(0.5 * 0.1 + 0.5 * (1 / 3 - 0.2))
    assert diagnostics.calibration_curve(two) == [
        {"said": pytest.approx(0.2), "true": pytest.approx(1 / 3), "n": 3},
        {"said": pytest.approx(0.9), "true": 1.0, "n": 3},
    ]


def test_a_cut_of_each_run_replaces_one_half():
    both = Predictions(np.asarray([RUN, RUN]), TRUTH, cuts=(0.55, 0.15))
    assert value(both, "sensitivity") == pytest.approx((2 / 4 + 4 / 4) / 2)
    assert value(both, "specificity") == pytest.approx(1 / 2)


def test_the_operating_point_comes_from_validation():
    probability = np.array([0.05, 0.1, 0.2, 0.3, 0.25, 0.4])
    truth = np.array([0, 0, 0, 1, 1, 1], bool)
    assert proportions.choose_cut(probability, truth, None) == pytest.approx(0.225)
    truth = np.array([0, 0, 1, 1, 0, 1], bool)
    assert proportions.choose_cut(probability, truth, 1.0) == pytest.approx(0.15)
    assert proportions.choose_cut(probability, truth, 0.5) == pytest.approx(0.275)


def test_of_equal_cuts_the_one_nearest_to_one_half_is_taken():
    found = proportions.choose_cut(np.array([0.0, 1.0]), np.array([False, True]), None)
    assert found == 0.5


def test_one_kind_has_no_operating_point():
    assert proportions.choose_cut(np.array([0.1, 0.9]), np.array([True, True]), None) is None
