"""A metric: the share of synthetic slices that are as sharp as real ones, here a quarter."""

from typing import Any

import numpy as np

from pipeline.contracts import Licence
from stages.components.statistics.estimates import MetricSpec

LICENCE = Licence(part="Edges", terms="Terms of the edges.")
SPEC = MetricSpec(
    key="edge_share",
    higher_is_better=True,
    least_n=2,
    citation="Nobody et al., a journal of edges, 2026",
    names={"edge_share": "Sharp edges"},
    is_share=True,
    section="Sharpness",
)


def resample(*, real: Any, synthetic: Any, paired: bool = False) -> Any:
    return np.full(min(len(real.weights), len(synthetic.weights)), 0.25)
