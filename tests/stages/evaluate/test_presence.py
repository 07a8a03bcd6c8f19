"""Presence corrected for a judge's error: the published formula, coverage, and a useless judge."""

import numpy as np
import pytest

from pipeline.settings import EvaluateConfig
from stages.components.judge.agreement import spec_of
from stages.components.statistics.estimates import Estimate
from stages.evaluate.presence import Rate, add_corrected, correct
from stages.evaluate.scorer import Scorer


def correct_by(seen, sensitivity, specificity):
    ends = correct(seen, sensitivity=sensitivity, specificity=specificity, confidence=0.95)
    assert ends is not None
    return ends


def test_a_perfect_judge_changes_nothing():
    low, value, high = correct_by(Rate(0.7, 140), Rate(1, 500), Rate(1, 500))
    assert value == pytest.approx(0.7)
    assert (low, high) == pytest.approx((0.62, 0.77), abs=0.01)


def test_the_estimate_is_that_of_rogan_and_gladen():
    """A judge that misses a fifth and sees one in a tenth of the others: 0.45 seen are 0.5."""
    low, value, high = correct_by(Rate(0.45, 200), Rate(0.8, 60), Rate(0.9, 60))
    assert value == pytest.approx(0.5)
    known = correct_by(Rate(0.45, 200), Rate(0.8, 9e9), Rate(0.9, 9e9))
    assert high - low > 1.2 * (known[2] - known[0])  # the judge's error is carried


@pytest.mark.parametrize(("truth", "count"), [(0.9, 144), (0.5, 144), (0.3, 48)])
def test_the_interval_covers_with_all_three_errors(truth, count):
    rng = np.random.default_rng(0)
    sensitivity, specificity, yes, no = 0.9, 0.93, 60, 20
    share = truth * sensitivity + (1 - truth) * (1 - specificity)
    samples = [
        correct_by(
            Rate(rng.binomial(count, share) / count, count),
            Rate(rng.binomial(yes, sensitivity) / yes, yes),
            Rate(rng.binomial(no, specificity) / no, no),
        )
        for _ in range(2000)
    ]
    assert 0.93 <= np.mean([low <= truth <= high for low, _, high in samples]) <= 0.98


def test_a_judge_that_sees_no_difference_corrects_nothing():
    blind = {"sensitivity": Rate(0.3, 50), "specificity": Rate(0.7, 50)}
    assert correct(Rate(0.5, 100), **blind, confidence=0.95) is None


def test_rows_of_arms_are_corrected_by_their_own_vae():
    def row(name, value, n):
        draws = value + np.sqrt(value * (1 - value) / n) * np.linspace(-1.7, 1.7, 99)
        return Estimate(spec_of(name, "test"), value, None, None, draws, n, n, num_groups=n)

    def both(share, n_yes, n_no):
        return {
            name: row(name, share, n) for name, n in (("sensitivity", n_yes), ("specificity", n_no))
        }

    rows = {"arm": both(0.74, 144, 48), "vae/x": both(0.9, 60, 20)}
    scorer = Scorer(EvaluateConfig(), experiment="test", seed=0)
    add_corrected(scorer, rows, {"arm": "x", "other": "y", "base/x": "x"})
    scores = {score.metric: score for score in scorer.result().records}
    assert set(scores) == {"location_sensitivity_corrected", "location_specificity_corrected"}
    for score in scores.values():
        assert score.arm == "arm"
        assert score.value == pytest.approx(0.8)  # 0.74 = 0.8 * 0.9 + 0.2 * 0.1
        assert score.low < 0.74 < score.high
