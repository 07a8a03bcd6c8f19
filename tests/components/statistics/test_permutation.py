import numpy as np
import pytest

from stages.components.statistics.permutation import NUM_FLIPS, sign_flip_p


def p(differences, groups, seed=0):
    return sign_flip_p(np.asarray(differences, float), groups, rng=np.random.default_rng(seed))


def test_few_groups_are_counted_out():
    assert p([1, 1, 1, 1, 1], list("abcde")) == pytest.approx(2 / 32)
    assert p([1, 1, -1], list("abc")) == 1.0  # every sum is 1 or 3 away from zero
    assert p([2, 1, -1], list("abc")) == pytest.approx(0.75)  # +-2, +-2, +-4 of eight; 0 twice
    assert p([0, 0], list("ab")) == p([], []) == 1.0


def test_slices_of_one_subject_are_one_witness():
    """Forty slices of five subjects: McNemar's exact p would be 2e-12."""
    assert p([1] * 40, [k // 8 for k in range(40)]) == pytest.approx(2 / 32)


def test_many_groups_are_drawn_and_p_is_never_zero():
    differences, groups = np.ones(60), list(range(60))
    assert p(differences, groups) == pytest.approx(1 / (1 + NUM_FLIPS))
    assert p(differences, groups, seed=1) == p(differences, groups, seed=1)


def test_under_the_null_small_ps_are_as_rare_as_they_should_be():
    rng = np.random.default_rng(3)
    rates = []
    for _ in range(400):
        leaning = rng.normal(0, 1, 20).repeat(6)  # a group's slices go the same way
        noise = rng.normal(0, 1, 120)
        rates.append(p(np.sign(leaning + noise), np.arange(20).repeat(6)) <= 0.05)
    assert 0.02 <= np.mean(rates) <= 0.08
