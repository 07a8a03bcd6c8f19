"""Images to features to scores: what `evaluate` and `compare` share.

Every image, real or synthetic, takes one way: decoded to RGB (one channel repeated), padded to a
square with 0, resized once by `imaging.resize` to the network's input. Images are read in batches
and only their features are kept, so memory does not grow with the images' size.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline import registry
from pipeline.contracts import PluginConfig
from pipeline.errors import SampleSizeError
from pipeline.seeding import numpy_rng
from stages.components import imaging
from stages.components.bootstrap import FloatArray, Resampled, interval, resample
from stages.components.imaging import RgbBatch, RgbImage
from stages.components.metric import Metric, MetricSpec

COLOUR_MODES = ("RGB", "P", "CMYK", "YCbCr", "LAB", "HSV")
ItemT = TypeVar("ItemT")


class FeatureExtractor(Protocol):
    """A network that turns images into features; states its name, width and input size."""

    @property
    def name(self) -> str: ...
    @property
    def num_features(self) -> int: ...
    @property
    def input_size(self) -> int: ...
    def __call__(self, images: RgbBatch) -> NDArray[np.float32]:
        """Compute features of uint8 images (n, size, size, 3) as float32 (n, num_features)."""


def load_extractor(plugin: PluginConfig, device: str) -> FeatureExtractor:
    """Load a feature extractor by its plug-in's name.

    Raises:
        UnknownPluginError: No such plug-in.
        MissingWeightsError: Its weights are not on this machine.
    """
    module = registry.find(registry.FEATURES, plugin.name)
    settings = module.Settings.model_validate(plugin.settings)
    return cast(FeatureExtractor, module.load(settings, device=device))


def load_metric(name: str) -> Metric:
    """Find a metric by its plug-in's name.

    Raises:
        UnknownPluginError: No such plug-in.
    """
    return cast(Metric, registry.find(registry.METRICS, name))


def read_rgb(path: Path) -> RgbImage:
    """Decode an image file as RGB, uint8 (height, width, 3); one channel is repeated.

    Colour is kept, so that a generator's colour cast counts. Transparency and more than 8 bits are
    treated as in `imaging.read_image`.

    Raises:
        DataError: The file is missing or cannot be decoded.
    """
    gray = imaging.read_image(path)
    with Image.open(path) as opened:
        if opened.mode in COLOUR_MODES and "transparency" not in opened.info:
            return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"), dtype=np.uint8)
    return imaging.to_rgb(gray)


def to_square(image: RgbImage) -> RgbImage:
    """Pad (height, width, 3) to a square with 0, as preprocess does."""
    return np.stack([imaging.pad_to_square(image[..., c]) for c in range(3)], axis=-1)


def in_batches(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """Yield lists of up to `size` items, in order."""
    waiting = iter(items)
    while batch := list(islice(waiting, size)):
        yield batch


def extract(
    extractors: Sequence[FeatureExtractor], images: Iterable[RgbImage], *, batch_size: int
) -> dict[str, FloatArray]:
    """Compute the features of images by each extractor: its name -> float64 (n, num_features).

    Images are consumed once; a batch of them is in memory at a time.
    """
    found: dict[str, list[NDArray[np.float32]]] = {e.name: [] for e in extractors}
    for batch in in_batches(images, batch_size):
        for extractor in extractors:
            sized = [imaging.resize(to_square(image), extractor.input_size) for image in batch]
            found[extractor.name].append(extractor(np.stack(sized)))
    return {
        e.name: np.concatenate(
            [np.zeros((0, e.num_features), np.float32), *found[e.name]], dtype=np.float64
        )
        for e in extractors
    }


@dataclass(frozen=True)
class Estimate:
    """A metric of one arm: its value, its interval and its draws (num_draws,)."""

    spec: MetricSpec
    value: float
    low: float | None
    high: float | None
    draws: FloatArray
    n_real: int
    n_synthetic: int


def make_estimate(
    spec: MetricSpec, values: FloatArray, *, confidence: float, n_real: int, n_synthetic: int
) -> Estimate:
    """Build an estimate from (1 + num_draws,) values, the first of them the estimate itself."""
    value, draws = float(values[0]), values[1:]
    low, high = interval(draws, confidence=confidence, centre=value if spec.is_biased else None)
    return Estimate(spec, value, low, high, draws, n_real, n_synthetic)


@dataclass(frozen=True)
class Panel:
    """One reference sample of real slices and what is scored against it, with paired draws.

    The real slices are drawn once, so all arms meet the same draws and differences between arms
    have an interval of their own.
    """

    real: Resampled
    num_draws: int
    confidence: float
    seed_parts: tuple[int | str, ...]

    @classmethod
    def of(
        cls,
        features: FloatArray,
        groups: Sequence[str],
        *,
        num_draws: int,
        confidence: float,
        seed_parts: tuple[int | str, ...],
    ) -> "Panel":
        """Draw the real slices (n, d) by their groups.

        Raises:
            SampleSizeError: Fewer than two slices.
        """
        rng = numpy_rng(*seed_parts, "bootstrap", "real")
        real = resample(features, groups, num_draws=num_draws, rng=rng)
        return cls(real, num_draws, confidence, seed_parts)

    def score(
        self,
        metric: Metric,
        features: FloatArray,
        groups: Sequence[str],
        *,
        name: str,
        paired: bool = False,
    ) -> Estimate:
        """Score features (m, d) against the real ones; `name` seeds their own draws.

        `paired`: the rows show the real slices themselves, in their order, and share their draws.

        Raises:
            SampleSizeError: Too few images.
        """
        metric.SPEC.require(real=self.real.features, synthetic=features)
        if paired:
            other = Resampled(features, self.real.groups, self.real.weights)
        else:
            rng = numpy_rng(*self.seed_parts, "bootstrap", name)
            other = resample(features, groups, num_draws=self.num_draws, rng=rng)
        real = self.real
        num_draws = min(len(real.weights), len(other.weights)) - 1
        if metric.SPEC.max_draws is not None:
            num_draws = min(num_draws, metric.SPEC.max_draws)
        real, other = real.first_draws(num_draws), other.first_draws(num_draws)
        values = metric.resample(real=real, synthetic=other, paired=paired)
        return make_estimate(
            metric.SPEC,
            values,
            confidence=self.confidence,
            n_real=len(real.features),
            n_synthetic=len(features),
        )


def difference(first: Estimate, second: Estimate, *, confidence: float) -> dict[str, Any]:
    """Return `first - second` with the interval of paired draws, as a JSON object."""
    value = first.value - second.value
    num_draws = min(len(first.draws), len(second.draws))
    draws = first.draws[:num_draws] - second.draws[:num_draws]
    centre = value if first.spec.is_biased else None
    low, high = interval(draws, confidence=confidence, centre=centre)
    return {"metric": first.spec.key, "value": value, "low": low, "high": high}


def all_differences(
    estimates: Mapping[str, Estimate], arms: Sequence[str], *, confidence: float
) -> dict[str, dict[str, Any]]:
    """Return the differences of all pairs of arms, keyed "a - b" in the arms' order."""
    return {
        f"{a} - {b}": difference(estimates[a], estimates[b], confidence=confidence)
        for a, b in combinations(arms, 2)
    }


GAP_CLOSED = MetricSpec(
    key="gap_closed",
    higher_is_better=True,
    least_n=2,
    citation="(kid of the base model - kid of the arm) / (kid of the base model - kid of its vae)",
)


def gap_closed(
    *, arm: Estimate, base: Estimate, vae: Estimate, confidence: float
) -> Estimate | None:
    """Return the share of the way from the base model to its VAE that an arm went.

    0: no nearer to real slices than the base model; 1: as near as real slices that only passed
    through the VAE. The interval is that of the ratio in paired draws. None where the base model is
    already as near as its VAE, since the share then means nothing.
    """
    if base.value <= vae.value:
        return None
    num_draws = min(len(arm.draws), len(base.draws), len(vae.draws))
    stacked = [np.concatenate([[e.value], e.draws[:num_draws]]) for e in (arm, base, vae)]
    room = stacked[1] - stacked[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (stacked[1] - stacked[0]) / room
    values = np.concatenate([values[:1], values[1:][room[1:] > 0]])
    return make_estimate(
        GAP_CLOSED,
        values,
        confidence=confidence,
        n_real=arm.n_real,
        n_synthetic=arm.n_synthetic,
    )


def require_images(count: int, least: int, *, what: str, remedy: str) -> None:
    """Refuse to score too few images.

    Raises:
        SampleSizeError: `count` is below `least`.
    """
    if count < least:
        raise SampleSizeError(f"{what}: found {count} images, expected at least {least}; {remedy}")
