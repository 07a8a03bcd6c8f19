"""Lesion crops: a distance that sees tumours, which one of whole slices hardly does.

Every image of a class with a tumour is cut to a square around the place where the judge is surest
of one: real slices too, though their true masks are known, so that the crops of both sides lie
where the same eyes look. An image in which the judge finds no tumour is cut all the same, at its
surest place, so no arm is nearer for what it leaves out. Slices that passed a VAE are cut where the
slice is.

Rows of `lesion_kid`: arms and base models, `vae/NAME`, `real` (crops of training slices, the floor)
and `control/notumor`: training slices without a tumour, cut where slices of the floor of their
orientation have one. It tells what the place and the tissue around would get by themselves.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.contracts import ALL, CONTROL, DISTANCE
from stages.components.features import extraction
from stages.components.imaging.pixels import RgbImage
from stages.components.judge.reading import Reading
from stages.components.statistics import kernel_distance
from stages.components.statistics.bootstrap import FloatArray, Resampled
from stages.components.statistics.cohorts import Item
from stages.components.statistics.estimates import MetricSpec
from stages.evaluate.location import read_files
from stages.evaluate.samples import FeatureSample, Reader
from stages.evaluate.scorer import Scorer

if TYPE_CHECKING:
    from stages.components.judge.network import Judge

NO_TUMOR = "notumor"
SIDE = 0.375  # of the image's: of a brain that fills it about 65 mm, most tumours and their rim
LEAST_N = 8  # crops a side
METHODS = (
    f"KID of lesion crops is that of squares of {SIDE:.1%} of the side, cut where that judge is "
    "surest of a tumour from every image that shows one or was asked to."
)
Place = tuple[float, float]  # row and column as shares of the sides


class LesionDistance:
    """The kernel distance, of crops; a pair metric."""

    SPEC = MetricSpec(
        key="lesion_kid",
        higher_is_better=False,
        least_n=LEAST_N,
        names={"lesion_kid": "KID of lesion crops"},
        digits=4,
        section=DISTANCE,
        citation=f"kid of crops, {SIDE} of the side, where a judge is surest of a tumour",
    )

    def resample(
        self, *, real: Resampled, synthetic: Resampled, paired: bool = False
    ) -> FloatArray:
        """Return the distance in each draw, as `kernel_distance.resample` does."""
        self.SPEC.require(real=real.features, synthetic=synthetic.features)
        return kernel_distance.resample(real=real, synthetic=synthetic, paired=paired)


def list_lesions(items: Sequence[Item]) -> list[Item]:
    """Keep what shows a tumour or was asked to show one."""
    return [item for item in items if item.label != NO_TUMOR]


def crop(image: RgbImage, place: Place) -> RgbImage:
    """Cut a square around a place, moved inward where it would leave the (padded) image."""
    square = extraction.to_square(image)
    side = max(1, round(SIDE * len(square)))
    top, left = (
        int(np.clip(round(share * len(square) - side / 2), 0, len(square) - side))
        for share in place
    )
    return square[top : top + side, left : left + side]


def borrow_places(
    items: Sequence[Item], others: Sequence[Item], places: Sequence[Place]
) -> list[tuple[Item, Place]]:
    """Give each item a place of another of its orientation, in turn; without one it is left out."""
    by_plane: dict[str, list[Place]] = {}
    for other, place in zip(others, places, strict=True):
        by_plane.setdefault(other.orientation, []).append(place)
    count: dict[str, int] = {}
    pairs = []
    for item in items:
        lent = by_plane.get(item.orientation)
        if lent:
            turn = count[item.orientation] = count.get(item.orientation, -1) + 1
            pairs.append((item, lent[turn % len(lent)]))
    return pairs


class LesionCrops:
    """Cuts the crops of a run and scores them."""

    def __init__(self, judge: "Judge", reader: Reader) -> None:
        """Take who judges and who reads crops; `known` gets the readings, for `location` to use."""
        self.judge = judge
        self.reader = reader
        self.known: dict[Path, Reading] = {}
        self.samples: dict[str, FeatureSample] = {}

    def find_places(self, items: Sequence[Item]) -> list[Place]:
        """Return the judge's surest place in each image."""
        readings = read_files(self.judge, (item.path for item in items), self.known)
        return [reading.place for reading in readings]

    def add(self, name: str, items: Sequence[Item]) -> None:
        """Cut a set's images with a tumour."""
        shown = list_lesions(items)
        self._add(name, shown, self.find_places(shown))

    def add_control(self, items: Sequence[Item], others: Sequence[Item]) -> None:
        """Cut tumour-free slices among `items` where `others` have their tumours."""
        lesions = list_lesions(others)
        free = [item for item in items if item.label == NO_TUMOR]
        pairs = borrow_places(free, lesions, self.find_places(lesions))[: len(lesions)]
        self._add(f"{CONTROL}{NO_TUMOR}", [item for item, _ in pairs], [at for _, at in pairs])

    def watch(
        self, name: str, items: Sequence[Item], images: Iterable[RgbImage]
    ) -> Iterator[RgbImage]:
        """Pass on what became of slices in a VAE, and cut those with a tumour on the way.

        Each is cut where its slice is. The crops count once all have passed.
        """
        shown = list_lesions(items)
        places = dict(zip((i.name for i in shown), self.find_places(shown), strict=True))
        crops: list[RgbImage] = []
        for item, image in zip(items, images, strict=True):
            if item.name in places:
                crops.append(crop(image, places[item.name]))
            yield image
        self.samples[name] = replace(self.reader.sample(shown, iter(crops), {}), is_paired=True)

    def _add(self, name: str, items: Sequence[Item], places: Sequence[Place]) -> None:
        images = extraction.iter_images(items)
        cut = (crop(image, place) for image, place in zip(images, places, strict=True))
        self.samples[name] = self.reader.sample(items, cut, {})

    def score(self, scorer: Scorer, against: str, bases: Mapping[str, str | None]) -> None:
        """Score all sets against the one of that name, on every network."""
        reference = self.samples[against]
        samples = {name: sample for name, sample in self.samples.items() if name != against}
        if len(reference.labels) < LEAST_N:
            scorer.warn(
                f"{LesionDistance.SPEC.key} needs at least {LEAST_N} slices with a tumour, found "
                f"{len(reference.labels)}"
            )
            return
        for extractor in self.reader.extractors:
            scorer.score_pairs(LesionDistance(), extractor.name, ALL, reference, samples, bases)
