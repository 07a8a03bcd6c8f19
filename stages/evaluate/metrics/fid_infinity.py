"""Frechet distance at infinitely many images, extrapolated from smaller ones.

    fid(n) = fid_infinity + slope / n

The distance is taken on `NUM_SIZES` subsets of both sides, of sizes between half of the sample and
the whole, and the line in 1/n is read off at 0. The line holds only where n is well above the
number of features, so below `least_n_per_feature` the metric is refused.

Source: Chong and Forsyth, "Effectively Unbiased FID and Inception Score and Where to Find Them",
CVPR 2020. Departures: subsets of both sides, since the real side is finite too; plain random
subsets instead of quasi-random ones; fewer sizes.
"""

import numpy as np

from pipeline.contracts import DISTANCE
from pipeline.seeding import numpy_rng
from stages.components.statistics.bootstrap import FloatArray, Resampled
from stages.components.statistics.estimates import MetricSpec
from stages.evaluate.metrics import fid

NUM_SIZES = 6
SMALLEST = 0.5  # of the sample

SPEC = MetricSpec(
    key="fid_infinity",
    higher_is_better=False,
    least_n=50,
    least_n_per_feature=2.0,
    max_draws=20,  # a draw takes `NUM_SIZES` distances
    is_biased=True,
    names={"fid_infinity": "FID at infinity"},
    section=DISTANCE,
    citation="Chong and Forsyth, CVPR 2020: the Frechet distance extrapolated to infinite n",
)


def compute(*, real: FloatArray, synthetic: FloatArray) -> float:
    """Return the extrapolated distance of features (n, d) and (m, d); subsets depend on n and m.

    Raises:
        SampleSizeError: Fewer than 50 rows on one side.
    """
    SPEC.require(real=real, synthetic=synthetic)
    rng = numpy_rng(SPEC.key, len(real), len(synthetic))
    inverses, distances = [], []
    for share in np.linspace(SMALLEST, 1.0, NUM_SIZES):
        parts = [
            rows[rng.permutation(len(rows))[: round(share * len(rows))]]
            for rows in (real, synthetic)
        ]
        inverses.append((1 / len(parts[0]) + 1 / len(parts[1])) / 2)
        distances.append(fid.compute(real=parts[0], synthetic=parts[1]))
    design = np.stack([np.ones(NUM_SIZES), np.asarray(inverses)], axis=1)
    solution, *_ = np.linalg.lstsq(design, np.asarray(distances), rcond=None)
    return float(solution[0])


def resample(*, real: Resampled, synthetic: Resampled, paired: bool = False) -> FloatArray:
    """Return the distance in each draw, (1 + num_draws,); a draw holds its copies.

    Raises:
        SampleSizeError: Fewer than 50 rows on one side.
    """
    num_rows = min(len(real.weights), len(synthetic.weights), 1 + (SPEC.max_draws or 0))
    return np.array(
        [
            compute(real=_copies(real, draw), synthetic=_copies(synthetic, draw))
            for draw in range(num_rows)
        ]
    )


def _copies(sample: Resampled, draw: int) -> FloatArray:
    counts = sample.row_weights[draw].astype(int)
    return np.repeat(sample.features, counts, axis=0)
