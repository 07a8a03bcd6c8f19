"""Kernel inception distance: the unbiased distance of `kernel_distance`, on the full sample.

It may be negative where two samples come from one distribution.

Source: Binkowski et al., "Demystifying MMD GANs", ICLR 2018.
"""

from pipeline.contracts import DISTANCE
from stages.components.statistics import kernel_distance
from stages.components.statistics.bootstrap import FloatArray, Resampled
from stages.components.statistics.estimates import MetricSpec

SPEC = MetricSpec(
    key="kid",
    higher_is_better=False,
    least_n=2,
    names={"kid": "KID"},
    digits=4,
    section=DISTANCE,
    citation="Binkowski et al., ICLR 2018; unbiased, polynomial kernel (a.b/d + 1)^3, full sample",
)


def resample(*, real: Resampled, synthetic: Resampled, paired: bool = False) -> FloatArray:
    """Return the distance in each draw, (1 + num_draws,), as `kernel_distance.resample` does.

    Raises:
        SampleSizeError: Fewer than two rows on one side.
    """
    SPEC.require(real=real.features, synthetic=synthetic.features)
    return kernel_distance.resample(real=real, synthetic=synthetic, paired=paired)
