"""Which images are scored: equal numbers per class for every arm, chosen by seed alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import (
    ALL,
    LABELS,
    NOISE,
    UNKNOWN,
    Artifact,
    Label,
    SliceRecord,
    Split,
    SyntheticRecord,
)
from pipeline.errors import SampleSizeError, SplitLeakError
from pipeline.seeding import numpy_rng
from stages.components.features.extraction import FeatureExtractor, extract, read_rgb
from stages.components.imaging.pixels import RgbImage
from stages.components.statistics.bootstrap import FloatArray

SeedParts = tuple[int | str, ...]


@dataclass(frozen=True)
class Item:
    """An image to be scored; images of one group are drawn together."""

    name: str
    path: Path
    label: Label
    group: str
    orientation: str = UNKNOWN
    prompt: str | None = None  # None: a real slice


@dataclass(frozen=True)
class Sample:
    """The features of one arm's images by extractor, with labels and groups in the same order."""

    features: Mapping[str, NDArray[Any]]
    labels: tuple[Label, ...]
    groups: tuple[str, ...]
    is_paired: bool = False  # row i shows the real test slice i
    planes: Mapping[str, Sequence[int]] = field(default_factory=dict)  # rows of each orientation
    prompts: tuple[str, ...] | None = None
    texts: Mapping[str, FloatArray] = field(default_factory=dict)  # of the prompts, by extractor

    def rows(self, group: str) -> list[int]:
        """Return the rows of a class, of an orientation, or all."""
        if group in self.planes:
            return list(self.planes[group])
        return [row for row, label in enumerate(self.labels) if group in (ALL, label)]


def list_real(preprocess: Artifact[SliceRecord], split: Split) -> list[Item]:
    """List the slices of a split."""
    return [
        Item(r.slice_id, preprocess.path(r.image_path), r.label, r.group_id, r.orientation)
        for r in preprocess.records()
        if r.split == split
    ]


def list_synthetic(generated: Artifact[SyntheticRecord]) -> list[Item]:
    """List an arm's images, each its own group; counterfactual ones are left out."""
    return [
        Item(
            r.image_id,
            generated.path(r.image_path),
            r.label,
            r.image_id,
            r.requested.orientation or UNKNOWN,
            r.prompt,
        )
        for r in generated.records()
        if r.counterfactual_of is None
    ]


def require_disjoint(test: Sequence[Item], train: Sequence[Item]) -> None:
    """Refuse a floor between samples that share a group.

    Raises:
        SplitLeakError: A group stands in both splits.
    """
    shared = {item.group for item in test} & {item.group for item in train}
    if shared:
        group = min(shared)
        in_train = sum(item.group == group for item in train)
        in_test = sum(item.group == group for item in test)
        raise SplitLeakError(
            f"group {group!r} is in both train ({in_train} slices) and test ({in_test} slices), "
            f"one of {len(shared)} such groups. Split by group_id, then rerun preprocess."
        )


def count_per_class(sets: Mapping[str, Sequence[Item]], max_images: int) -> dict[Label, int]:
    """Return how many images of each class every set gives: what the smallest has, capped.

    The cap shares `max_images` equally among the classes that all sets have.

    Raises:
        SampleSizeError: The sets have fewer than two images of shared classes.
    """
    least = {
        label: min(sum(item.label == label for item in items) for items in sets.values())
        for label in LABELS
    }
    shared = [label for label in LABELS if least[label] > 0]
    counts = {label: min(least[label], max(1, max_images // len(shared))) for label in shared}
    if sum(counts.values()) < 2:
        found = ", ".join(f"{name} {len(items)}" for name, items in sets.items())
        raise SampleSizeError(
            f"evaluate needs at least 2 images of classes that every set has, found "
            f"{sum(counts.values())} (images: {found}). Raise generate.num_images, let "
            "generate.labels name the classes of the real slices, or add real slices."
        )
    return counts


def choose(items: Sequence[Item], counts: Mapping[Label, int], seed_parts: SeedParts) -> list[Item]:
    """Take the first `counts` images of each class after a seeded shuffle.

    The order of `items` does not matter: they are sorted by name first.
    """
    chosen: list[Item] = []
    for label, count in counts.items():
        candidates = sorted((i for i in items if i.label == label), key=lambda item: item.name)
        order = numpy_rng(*seed_parts, "choose", label).permutation(len(candidates))
        chosen += [candidates[row] for row in order[:count]]
    return chosen


def balance_planes(chosen: Mapping[str, Sequence[Item]]) -> dict[str, dict[str, list[int]]]:
    """Pick rows of each orientation, the same number per class from every set.

    Returns set -> orientation -> rows. An orientation that a set lacks, or does not name, has none;
    the first rows are taken, which a seed has shuffled already.
    """
    cells: dict[str, dict[tuple[str, str], list[int]]] = {}
    for name, items in chosen.items():
        own = cells.setdefault(name, {})
        for row, item in enumerate(items):
            own.setdefault((item.orientation, item.label), []).append(row)
    known = sorted({o for own in cells.values() for o, _ in own} - {UNKNOWN})
    planes: dict[str, dict[str, list[int]]] = {name: {} for name in chosen}
    for plane in known:
        counts = {
            label: min(len(own.get((plane, label), ())) for own in cells.values())
            for label in LABELS
        }
        if sum(counts.values()) >= 2:
            for name, own in cells.items():
                planes[name][plane] = [
                    row
                    for label, count in counts.items()
                    for row in own.get((plane, label), [])[:count]
                ]
    return planes


def iter_images(items: Sequence[Item]) -> Iterator[RgbImage]:
    """Decode images one after the other.

    Raises:
        DataError: One of them is missing or damaged.
    """
    return (read_rgb(item.path) for item in items)


def iter_noise(count: int, size_px: int, seed_parts: SeedParts) -> Iterator[RgbImage]:
    """Yield images of uniform noise, independent in every pixel and channel."""
    for number in range(count):
        rng = numpy_rng(*seed_parts, NOISE, number)
        yield rng.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)


def noise_features(
    extractors: Sequence[FeatureExtractor],
    count: int,
    seed_parts: SeedParts,
    *,
    batch_size: int,
    luma_sizes: Sequence[int] = (),
    cache_dir: Path | None = None,
) -> dict[str, NDArray[Any]]:
    """Extract the features of noise made at each network's own input size; see `extract`."""
    features: dict[str, NDArray[Any]] = {}
    for extractor in extractors:
        noise = iter_noise(count, extractor.input_size, seed_parts)
        features |= extract([extractor], noise, batch_size=batch_size, cache_dir=cache_dir)
    for size in luma_sizes:
        noise = iter_noise(count, size, seed_parts)
        features |= extract([], noise, batch_size=batch_size, luma_sizes=[size])
    return features
