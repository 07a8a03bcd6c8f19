"""Shards of slices that nobody had to render: what a cache of phantoms holds after its builds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import TumorReport
from pipeline.files import write_arrays
from stages.embedded.corpora import truth


def write_truth(
    cache_dir: Path,
    split: truth.Split,
    images: NDArray[np.uint8],
    lesions: NDArray[np.bool_],
    reports: Sequence[TumorReport],
    each: int,
) -> None:
    """Write slices (n, size, size) as shards of `each` subsequent ones."""
    count = len(images) // each
    for number, shard in enumerate(truth.plan(cache_dir, split, count, images.shape[1])):
        rows = slice(number * each, (number + 1) * each)
        write_arrays(
            shard.path,
            images=images[rows],
            lesions=np.packbits(lesions[rows], axis=-1),
            reports=np.array([report.model_dump_json() for report in reports[rows]]),
        )
