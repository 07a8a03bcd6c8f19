"""MS-SSIM: mean multi-scale structural similarity of two slices of one class, or of one prompt.

Lower is more varied, and noise is lowest of all: read it beside the row of real slices. A generator
that repeats itself lies above that row. Slices are compared as brightness at 176 px; each takes
part in one pair, of two groups. Source: Odena, Olah and Shlens, "Conditional Image Synthesis with
Auxiliary Classifier GANs", ICML 2017.
"""

import numpy as np

from pipeline.contracts import VARIETY
from stages.components.statistics.bootstrap import FloatArray
from stages.components.statistics.estimates import LUMA, MetricSpec
from stages.evaluate import ssim
from stages.evaluate.metric import Described
from stages.evaluate.metrics._pairs import Within, disjoint_pairs, permutation_p, weighted

WITHIN: tuple[Within, ...] = ("class", "prompt")

SPEC = MetricSpec(
    key="ms_ssim",
    higher_is_better=False,
    scores=(("ms_ssim", False), ("ms_ssim_within_prompt", False)),
    kind="sample",
    features=LUMA,
    least_n=4,
    names={"ms_ssim": "MS-SSIM", "ms_ssim_within_prompt": "MS-SSIM within a prompt"},
    section=VARIETY,
    citation="Odena et al., ICML 2017: MS-SSIM of pairs of one class (and prompt) at 176 px",
)


def describe(sample: Described) -> FloatArray:
    """Return both scores in each draw, (2, 1 + num_draws)."""
    scores = []
    for within in WITHIN:
        pairs = disjoint_pairs(sample, within)
        scores.append(weighted(sample, pairs, _values(sample, within)))
    return np.stack(scores)


def chance(
    sample: Described, floor: Described, rng: np.random.Generator, count: int
) -> tuple[float | None, ...]:
    """Return p for "no more alike than real slices", per score."""
    return tuple(
        permutation_p(_values(sample, w), _values(floor, w), higher=True, rng=rng, count=count)
        for w in WITHIN
    )


def _values(sample: Described, within: Within) -> FloatArray:
    first, second = disjoint_pairs(sample, within)
    images = sample.rows.reshape(len(sample), ssim.SIZE_PX, ssim.SIZE_PX)
    return ssim.ms_ssim(images[first], images[second])
