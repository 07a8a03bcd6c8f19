"""The poster's "FID": a Frechet distance on pooled VGG-16 features, under a name of its own.

The formula is `fid`'s; what differs is the network, whose 512 numbers are no Inception features. It
stands here so that the poster's column can be continued, and is comparable with nothing else.
"""

from dataclasses import replace

from pipeline.contracts import OTHER_SCORES
from stages.components.statistics.bootstrap import FloatArray, Resampled
from stages.components.statistics.estimates import MetricSpec
from stages.evaluate.metrics import fid

SPEC: MetricSpec = replace(
    fid.SPEC,
    key="vgg_fd",
    features="vgg16",
    names={"vgg_fd": "VGG FD"},
    section=OTHER_SCORES,  # not among those that can be compared
    citation="the poster's FID: Frechet distance on 512 pooled VGG-16 features, not comparable",
)


def resample(*, real: Resampled, synthetic: Resampled, paired: bool = False) -> FloatArray:
    """Return the distance in each draw, as `fid.resample` does.

    Raises:
        SampleSizeError: Fewer than two rows on one side.
    """
    SPEC.require(real=real.features, synthetic=synthetic.features)
    return fid.resample(real=real, synthetic=synthetic, paired=paired)
