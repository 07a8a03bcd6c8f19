"""CLIP score, 100 times the cosine of image and text embeddings: does an image fit its prompt?

`clip_score_gain` is what remains after taking off the mean over all other prompts of the sample, so
chance is 0: medical prompts differ in few words, and a high score alone may only say "brain MRI".
The score itself is torchmetrics' `CLIPScore` on the same embeddings, before its cut at 0.

Source: Hessel et al., "CLIPScore", EMNLP 2021. It needs `clip` among `evaluate.features`.
"""

import numpy as np

from stages.components.statistics.bootstrap import FloatArray
from stages.components.statistics.estimates import MetricSpec
from stages.evaluate.metric import Described

SPEC = MetricSpec(
    key="clip_score",
    higher_is_better=True,
    scores=(("clip_score", True), ("clip_score_gain", True)),
    kind="sample",
    features="clip",
    least_n=4,
    names={"clip_score": "CLIP score", "clip_score_gain": "CLIP score over other prompts"},
    citation="Hessel et al., EMNLP 2021; gain: over the sample's other prompts, chance is 0",
)


def describe(sample: Described) -> FloatArray:
    """Return both scores in each draw, (2, 1 + num_draws); NaN for slices without prompts."""
    weights = sample.weights[:, sample.groups]
    if sample.texts is None:
        return np.full((2, len(weights)), np.nan)
    cosines = 100 * _cosines(sample.rows, sample.texts)
    totals = weights.sum(axis=1)
    matched = weights @ np.diag(cosines) / totals
    every = ((weights @ cosines) * weights).sum(axis=1) / totals**2
    gain = matched - every
    return np.stack([matched, gain * len(cosines) / (len(cosines) - 1)])


def chance(
    sample: Described, floor: Described, rng: np.random.Generator, count: int
) -> tuple[float | None, ...]:
    """Return p for "the prompts might as well be exchanged"; real slices have none to compare."""
    if sample.texts is None or not count:
        return None, None
    cosines = _cosines(sample.rows, sample.texts)
    rows = np.arange(len(cosines))
    drawn = np.array([cosines[rows, rng.permutation(rows)].mean() for _ in range(count)])
    p = float(1 + (drawn >= np.diag(cosines).mean()).sum()) / (1 + count)
    return p, p


def _cosines(images: FloatArray, texts: FloatArray) -> FloatArray:
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)]
    cosines: FloatArray = unit[0] @ unit[1].T
    return cosines
