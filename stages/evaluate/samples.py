"""Samples: the features of the images that are scored, balanced by orientation, and noise."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import ALL, LABELS, NOISE, UNKNOWN, Label
from pipeline.seeding import numpy_rng
from stages.components.features import extraction
from stages.components.features.extraction import FeatureExtractor, extract
from stages.components.imaging.pixels import RgbImage
from stages.components.statistics.bootstrap import FloatArray
from stages.components.statistics.cohorts import Item, SeedParts
from stages.evaluate import ssim


@dataclass(frozen=True)
class FeatureSample:
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

    def take(self, rows: Sequence[int]) -> "FeatureSample":
        """Keep some rows, of no orientation."""
        return FeatureSample(
            features={name: values[rows] for name, values in self.features.items()},
            labels=tuple(self.labels[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            is_paired=self.is_paired,
            prompts=None if self.prompts is None else tuple(self.prompts[row] for row in rows),
            texts={name: values[rows] for name, values in self.texts.items()},
        )


def pool_groups(samples: Iterable[FeatureSample]) -> list[str]:
    """List the groups that any sample has, each once, sorted.

    An arm's image is named after its prompt and its number, from which its seed comes too, so arms
    that were asked the same have the same groups.
    """
    return sorted({group for sample in samples for group in sample.groups})


def balance_planes(chosen: Mapping[str, Sequence[Item]]) -> dict[str, dict[str, list[int]]]:
    """Pick rows of each orientation, the same number per class from every set.

    Returns set -> orientation -> rows. An orientation that a set lacks, or does not name, has none;
    the first rows are taken, which a seed has shuffled already.
    """
    cells: dict[str, dict[tuple[str, str], list[int]]] = {}
    for name, items in chosen.items():
        cell_rows = cells.setdefault(name, {})
        for row, item in enumerate(items):
            cell_rows.setdefault((item.orientation, item.label), []).append(row)
    known = sorted({o for cell_rows in cells.values() for o, _ in cell_rows} - {UNKNOWN})
    planes: dict[str, dict[str, list[int]]] = {name: {} for name in chosen}
    for plane in known:
        counts = {
            label: min(len(cell_rows.get((plane, label), ())) for cell_rows in cells.values())
            for label in LABELS
        }
        if sum(counts.values()) >= 2:
            for name, cell_rows in cells.items():
                planes[name][plane] = [
                    row
                    for label, count in counts.items()
                    for row in cell_rows.get((plane, label), [])[:count]
                ]
    return planes


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


@dataclass(frozen=True)
class Reader:
    """Turns chosen images into samples: what the networks and the settings have in common."""

    extractors: Sequence[FeatureExtractor]
    batch_size: int
    cache_dir: Path

    def extract(self, images: Iterator[RgbImage], *luma_sizes: int) -> dict[str, Any]:
        """Compute features by every network, and brightness."""
        return extraction.extract(
            self.extractors,
            images,
            batch_size=self.batch_size,
            cache_dir=self.cache_dir,
            luma_sizes=luma_sizes,
        )

    def sample(
        self, items: Sequence[Item], images: Iterator[RgbImage], planes: Mapping[str, Sequence[int]]
    ) -> FeatureSample:
        """Read one arm's images, and its prompts where a network reads text."""
        prompts = tuple(item.prompt for item in items if item.prompt is not None)
        has_prompts = bool(items) and len(prompts) == len(items)
        readers = [e for e in self.extractors if hasattr(e, "encode_texts") and has_prompts]
        return FeatureSample(
            features=self.extract(images, ssim.SIZE_PX),
            labels=tuple(item.label for item in items),
            groups=tuple(item.group for item in items),
            planes=planes,
            prompts=prompts if has_prompts else None,
            texts={e.name: np.asarray(e.encode_texts(prompts), float) for e in readers},
        )
