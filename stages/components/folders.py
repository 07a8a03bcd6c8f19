"""Folders of images that nobody prepared: found, read, and counted where they cannot be read."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.errors import DataError, SampleSizeError, SkippedTooManyError
from stages.components.features import extraction
from stages.components.features.extraction import FeatureExtractor
from stages.components.imaging.pixels import RgbImage

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MAX_SKIPPED_FRACTION = 0.02  # of a folder's images
BATCH_SIZE = 32


def list_images(folder: Path) -> list[Path]:
    """List a folder's image files, subfolders included, sorted.

    Raises:
        DataError: It is no folder, or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is no folder; give one that holds images")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not found:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{str(folder)!r} holds no image ({kinds}), subfolders included")
    return found


def read_folder(
    folder: Path,
    extractor: FeatureExtractor,
    *,
    least: int,
    progress: Callable[[str], None],
    luma_sizes: Sequence[int] = (),
) -> tuple[list[Path], dict[str, NDArray[Any]]]:
    """Extract what `scoring.extract` gives of a folder's images, with their paths, sorted.

    Images that cannot be read are skipped, counted and named.

    Raises:
        DataError: The folder holds no image.
        SkippedTooManyError: More than 2 % of its images cannot be read.
        SampleSizeError: Fewer than `least` images.
    """
    paths = list_images(folder)
    kept: list[Path] = []
    skipped: list[str] = []

    def readable() -> Iterator[RgbImage]:
        for path in paths:
            try:
                image = extraction.read_rgb(path)
            except DataError as error:
                skipped.append(str(error))
                continue
            kept.append(path)
            yield image

    progress(f"features: {folder}, {len(paths)} images")
    features = extraction.extract(
        [extractor], readable(), batch_size=BATCH_SIZE, luma_sizes=luma_sizes
    )
    if skipped:
        counted = f"{len(skipped)} of {len(paths)} images in {str(folder)!r} cannot be read"
        if len(skipped) > MAX_SKIPPED_FRACTION * len(paths):
            raise SkippedTooManyError(
                f"{counted}, more than {MAX_SKIPPED_FRACTION:.0%}; the first: {skipped[0]}"
            )
        progress(f"skipped: {counted}; the first: {skipped[0]}")
    if len(kept) < least:
        raise SampleSizeError(
            f"{folder}: found {len(kept)} images, expected at least {least}; add images, or give "
            "another folder"
        )
    return kept, features
