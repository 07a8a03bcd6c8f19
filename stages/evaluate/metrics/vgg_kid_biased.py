"""The poster's "KID": biased, on 20 subsets of 10 images, under a name of its own.

    mean over subsets of  mean_ij k(r_i, r_j) + mean_ij k(s_i, s_j) - 2 mean_ij k(r_i, s_j)

with the diagonals left in, so that it is above 0 even between samples of one distribution. The
poster drew its subsets without a seed; here the numbers of rows alone decide them. `kid` is the one
to read.
"""

import numpy as np

from pipeline.seeding import numpy_rng
from stages.components.statistics.bootstrap import FloatArray, Resampled
from stages.components.statistics.estimates import MetricSpec
from stages.components.statistics.kernel_distance import kernel

NUM_SUBSETS, SUBSET_SIZE = 20, 10

SPEC = MetricSpec(
    key="vgg_kid_biased",
    higher_is_better=False,
    least_n=SUBSET_SIZE,
    features="vgg16",
    names={"vgg_kid_biased": "VGG KID, biased"},
    is_biased=True,
    citation="the poster's KID: biased, 20 subsets of 10, on VGG-16 features; not comparable",
)


def resample(*, real: Resampled, synthetic: Resampled, paired: bool = False) -> FloatArray:
    """Return the distance in each draw, (1 + num_draws,); subsets are drawn by weight.

    Raises:
        SampleSizeError: Fewer than ten rows on one side.
    """
    SPEC.require(real=real.features, synthetic=synthetic.features)
    num_rows = min(len(real.weights), len(synthetic.weights))
    v, w = real.row_weights, synthetic.row_weights
    values = []
    for draw in range(num_rows):
        rng = numpy_rng(SPEC.key, len(real.features), len(synthetic.features))
        values.append(_mean_of_subsets(real.features, synthetic.features, rng, v[draw], w[draw]))
    return np.array(values)


def _mean_of_subsets(
    real: FloatArray, synthetic: FloatArray, rng: np.random.Generator, v: FloatArray, w: FloatArray
) -> float:
    """Average the biased distance over subsets of rows, copies counted as often as drawn."""
    real_rows, synthetic_rows = (np.repeat(np.arange(len(x)), x.astype(int)) for x in (v, w))
    values = []
    for _ in range(NUM_SUBSETS):
        a = real[rng.choice(real_rows, min(SUBSET_SIZE, len(real_rows)), replace=False)]
        b = synthetic[
            rng.choice(synthetic_rows, min(SUBSET_SIZE, len(synthetic_rows)), replace=False)
        ]
        values.append(kernel(a, a).mean() + kernel(b, b).mean() - 2 * kernel(a, b).mean())
    return float(np.mean(values))
