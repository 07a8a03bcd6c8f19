"""Feature extraction: images read, sized and passed through networks, all in one way.

Every image, real or synthetic, takes one way: decoded to RGB (one channel repeated), padded to a
square with 0, resized once by `pixels.resize` to the network's input. Images are read in batches
and only their features are kept, so memory does not grow with the images' size; features that a
network has computed before are read from its cache.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline import registry
from pipeline.contracts import PluginConfig
from pipeline.errors import MissingWeightsError
from stages.components.features.cache import FeatureCache, image_digest
from stages.components.imaging import pixels
from stages.components.imaging.pixels import GrayImage, RgbBatch, RgbImage
from stages.components.statistics.cohorts import Item

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
    @property
    def digest(self) -> str:
        """Of the weights: what was computed with others does not count."""

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


def load_extractors(
    plugins: Sequence[PluginConfig], device: str
) -> tuple[list[FeatureExtractor], list[str]]:
    """Load the extractors that can be loaded, and say which cannot, with what to do.

    Raises:
        UnknownPluginError: No such plug-in.
        MissingWeightsError: None of them can be loaded.
    """
    extractors: list[FeatureExtractor] = []
    missing: list[str] = []
    for plugin in plugins:
        try:
            extractors.append(load_extractor(plugin, device))
        except MissingWeightsError as error:
            missing.append(f"missing, so without scores: {error}")
    if not extractors:
        raise MissingWeightsError("; ".join(missing))
    return extractors, missing


def read_rgb(path: Path) -> RgbImage:
    """Decode an image file as RGB, uint8 (height, width, 3); one channel is repeated.

    Colour is kept, so that a generator's colour cast counts. Transparency and more than 8 bits are
    treated as in `pixels.read_image`.

    Raises:
        DataError: The file is missing or cannot be decoded.
    """
    gray = pixels.read_image(path)
    with Image.open(path) as opened:
        if opened.mode in COLOUR_MODES and "transparency" not in opened.info:
            return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"), dtype=np.uint8)
    return pixels.to_rgb(gray)


def to_square(image: RgbImage) -> RgbImage:
    """Pad (height, width, 3) to a square with 0, as preprocess does."""
    return np.stack([pixels.pad_to_square(image[..., c]) for c in range(3)], axis=-1)


def in_batches(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """Yield lists of up to `size` items, in order."""
    waiting = iter(items)
    while batch := list(islice(waiting, size)):
        yield batch


def to_luma(image: RgbImage, size: int) -> GrayImage:
    """Return the brightness (ITU-R 601) of an image, padded and resized to (size, size)."""
    gray = np.asarray(np.rint(image @ np.array([0.299, 0.587, 0.114])), dtype=np.uint8)
    return pixels.resize(pixels.pad_to_square(gray), size)


def luma_name(size: int) -> str:
    """Name the brightness at a size, as `extract` keys it."""
    return f"luma{size}"


def extract(
    extractors: Sequence[FeatureExtractor],
    images: Iterable[RgbImage],
    *,
    batch_size: int,
    cache_dir: Path | None = None,
    luma_sizes: Sequence[int] = (),
) -> dict[str, NDArray[Any]]:
    """Compute the features of images by each extractor: its name -> float64 (n, num_features).

    Images are consumed once; a batch of them is in memory at a time.

    Args:
        extractors: The networks.
        images: RGB, uint8, of any size.
        batch_size: Images in memory; changes no feature.
        cache_dir: Where features lie that were computed before; None: nowhere.
        luma_sizes: Also keep the images' brightness at these sizes in px, as `luma_name(size)` ->
            uint8 (n, size * size).
    """
    batches: dict[str, list[NDArray[np.float32]]] = {e.name: [] for e in extractors}
    lumas: dict[int, list[GrayImage]] = {size: [] for size in luma_sizes}
    caches = {
        e.name: FeatureCache(cache_dir, name=e.name, digest=e.digest, input_size=e.input_size)
        for e in extractors
        if cache_dir is not None
    }
    for batch in in_batches(images, batch_size):
        for extractor in extractors:
            batches[extractor.name].append(_run(extractor, batch, caches.get(extractor.name)))
        for size, rows in lumas.items():
            rows += [to_luma(image, size).reshape(-1) for image in batch]
    for cache in caches.values():
        cache.flush()
    features: dict[str, NDArray[Any]] = {
        e.name: np.concatenate(
            [np.zeros((0, e.num_features), np.float32), *batches[e.name]], dtype=np.float64
        )
        for e in extractors
    }
    for size, rows in lumas.items():
        features[luma_name(size)] = np.asarray(rows, np.uint8).reshape(len(rows), size * size)
    return features


def _run(
    extractor: FeatureExtractor, images: Sequence[RgbImage], cache: FeatureCache | None
) -> NDArray[np.float32]:
    """Compute features of a batch, (n, num_features), each image that no cache holds once."""
    if cache is None:
        return extractor(_sized(extractor, images))
    digests = [image_digest(image) for image in images]
    known = {digest: cache.find(digest) for digest in digests}
    features = {digest: row for digest, row in known.items() if row is not None}
    new = {d: i for d, i in zip(digests, images, strict=True) if d not in features}
    if new:
        rows = dict(zip(new, extractor(_sized(extractor, list(new.values()))), strict=True))
        cache.add(rows)
        features |= rows
    return np.stack([features[digest] for digest in digests])


def _sized(extractor: FeatureExtractor, images: Sequence[RgbImage]) -> RgbBatch:
    return np.stack([pixels.resize(to_square(image), extractor.input_size) for image in images])


def iter_images(items: Sequence[Item]) -> Iterator[RgbImage]:
    """Decode images one after the other.

    Raises:
        DataError: One of them is missing or damaged.
    """
    return (read_rgb(item.path) for item in items)
