"""Copies by the rule that `evaluate` reports (`memorisation`), with one difference.

An image is a copy where it is nearer to some training slice than 99 % of held-out real slices are,
in features of efficientnet_lite0 or in pixels. Held out are the validation slices, where `evaluate`
takes test slices, because nothing of the test split may shape what is generated.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Artifact, SliceRecord
from pipeline.errors import SampleSizeError
from stages.components.features import extraction, nearest
from stages.components.features.extraction import iter_images
from stages.components.features.extractors import efficientnet_lite0
from stages.components.features.nearest import Gallery, Probe, Threshold
from stages.components.imaging.pixels import RgbBatch, RgbImage
from stages.components.statistics.cohorts import list_real

if TYPE_CHECKING:
    from stages.components.features.extraction import FeatureExtractor

BATCH_SIZE = 16
Settings = efficientnet_lite0.Settings
check = efficientnet_lite0.check


@dataclass(frozen=True)
class SliceWatch:
    """The training slices and the threshold."""

    extractor: "FeatureExtractor"
    gallery: Gallery
    threshold: Threshold

    def find_copies(self, images: RgbBatch) -> NDArray[np.bool_]:
        """Tell which images, uint8 (n, size, size, 3), are copies, (n,); each by itself."""
        return self.threshold.is_copy(self.gallery.nearest(read(self.extractor, images, None)))


def read(
    extractor: "FeatureExtractor", images: Iterable[RgbImage], cache_dir: Path | None
) -> Probe:
    """Compute what images are compared by."""
    arrays = extraction.extract(
        [extractor],
        images,
        batch_size=BATCH_SIZE,
        cache_dir=cache_dir,
        luma_sizes=[nearest.SIZE_PX],
    )
    return Probe(arrays[extractor.name], arrays[extraction.luma_name(nearest.SIZE_PX)])


def build(
    settings: efficientnet_lite0.Settings,
    preprocess: Artifact[SliceRecord],
    *,
    device: str,
    cache_dir: Path,
    progress: Callable[[str], None],
) -> SliceWatch:
    """Read the training and validation slices and set the threshold.

    Raises:
        MissingWeightsError: The network is not on this machine.
        SampleSizeError: There is no training slice, or there are fewer than two validation slices.
    """
    train, held_out = list_real(preprocess, "train"), list_real(preprocess, "val")
    if not train or len(held_out) < 2:
        raise SampleSizeError(
            f"generate.withhold_copies needs a training slice and two validation slices, found "
            f"{len(train)} and {len(held_out)} in {preprocess.root}; raise preprocess.val_fraction"
        )
    if len(held_out) < nearest.LEAST_HELD_OUT:
        progress(
            f"generate: copies are told by {len(held_out)} validation slices, fewer than "
            f"{nearest.LEAST_HELD_OUT}, so roughly"
        )
    extractor = efficientnet_lite0.load(settings, device=device)
    cache = cache_dir / "features"
    gallery = Gallery(read(extractor, iter_images(train), cache))
    real = gallery.nearest(read(extractor, iter_images(held_out), cache))
    return SliceWatch(extractor, gallery, Threshold.of(real))
