"""How long the scores take: `make bench` runs this, `make test` does not (it wants quiet cores)."""

import sys
import time

import numpy as np
import pytest

from stages.components.statistics.bootstrap import resample
from stages.evaluate.metrics import fid, kid

D = 2048  # of Inception


def took(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def test_fid_from_statistics_is_five_times_as_fast_as_the_matrix_square_root():
    from scipy import linalg

    rng = np.random.default_rng(0)
    statistics = []
    for shift in (0.0, 0.1):
        rows = rng.normal(shift, 1.0, (3000, D))
        statistics.append((rows.mean(axis=0), np.cov(rows, rowvar=False)))
    (m, a), (n, b) = statistics

    def by_square_root():
        return float((m - n) @ (m - n) + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real))

    found, own = took(lambda: fid.from_statistics(*statistics))
    expected, other = took(by_square_root)
    sys.stdout.write(f"\nfid from statistics: {own:.1f} s; by scipy.linalg.sqrtm: {other:.1f} s\n")
    assert found == pytest.approx(expected, rel=1e-6)
    assert other > 5 * own


def test_a_thousand_draws_of_kid_take_less_than_a_minute():
    rng = np.random.default_rng(0)
    sides = [
        resample(rng.normal(s, 1.0, (1000, 1280)), list(range(1000)), num_draws=1000, rng=rng)
        for s in (0.0, 0.1)
    ]
    found, seconds = took(lambda: kid.resample(real=sides[0], synthetic=sides[1]))
    sys.stdout.write(f"\nkid, 1,000 draws at n = 1,000: {seconds:.1f} s\n")
    assert len(found) == 1001
    assert seconds < 60
