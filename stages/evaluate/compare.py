"""`mrisynth compare`: the scores of the evaluate stage for any two folders of images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import ALL, NOISE, REAL, PluginConfig, ScoreRecord
from pipeline.errors import DataError, SampleSizeError, SkippedTooManyError
from pipeline.seeding import numpy_rng
from pipeline.settings import EvaluateConfig
from stages.components.features import extraction, nearest
from stages.components.features.extraction import FeatureExtractor, luma_name
from stages.components.imaging.pixels import RgbImage
from stages.evaluate import copies, ssim
from stages.evaluate.samples import FeatureSample, noise_features
from stages.evaluate.scorer import Scorer

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
    images = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{str(folder)!r} holds no image ({kinds}), subfolders included")
    return images


def read_folder(
    folder: Path,
    extractor: FeatureExtractor,
    *,
    least: int,
    progress: Callable[[str], None],
    luma_sizes: Sequence[int] = (),
) -> tuple[list[Path], dict[str, NDArray[Any]]]:
    """Extract what `extraction.extract` gives of a folder's images, with their paths, sorted.

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


def compare_folders(
    real: Path,
    synthetic: Path,
    *,
    features: str,
    seed: int,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> list[ScoreRecord]:
    """Score any two folders of images as `run` does, with all the images that they hold.

    Rows: `synthetic` against real; `real`, one random half of the real folder against the other (a
    floor that knows no subjects, so it may be too low); `noise` against real. Nothing says which
    images belong together, so intervals take each as its own group. `copied_share` takes the whole
    real folder for training slices, and each real image's nearest other one for held-out slices.

    Args:
        real: Folder of the reference, searched with its subfolders.
        synthetic: Folder to be scored.
        features: Name of a feature extractor.
        seed: Of the halves, the noise and the bootstrap.
        device: Where the network runs.
        progress: Gets a line now and then.

    Raises:
        UnknownPluginError: No extractor of that name.
        MissingWeightsError: Its weights are not on this machine.
        DataError: A folder is missing or holds no image.
        SkippedTooManyError: Too many images cannot be read.
        SampleSizeError: Fewer than 4 real or 2 synthetic images.
    """
    config = EvaluateConfig(features=(PluginConfig(name=features),))
    for folder in (real, synthetic):
        list_images(folder)
    extractor = extraction.load_extractor(config.features[0], device)
    sizes = (ssim.SIZE_PX, nearest.SIZE_PX)
    _, rows = read_folder(real, extractor, least=4, progress=progress, luma_sizes=sizes)
    _, made = read_folder(synthetic, extractor, least=2, progress=progress, luma_sizes=sizes)
    num_real, num_made = len(rows[extractor.name]), len(made[extractor.name])
    seed_parts = (seed, "compare")
    noise = noise_features(
        [extractor], num_made, seed_parts, batch_size=32, luma_sizes=[ssim.SIZE_PX]
    )
    order = numpy_rng(*seed_parts, "halves").permutation(num_real)
    half = num_real // 2

    def sample(
        arrays: Mapping[str, Any], name: str, chosen: NDArray[np.intp] | None = None
    ) -> FeatureSample:
        taken = {k: v if chosen is None else v[chosen] for k, v in arrays.items()}
        count = len(taken[extractor.name])
        labels: tuple[Any, ...] = ("",) * count
        return FeatureSample(taken, labels, tuple(f"{name}-{row}" for row in range(count)))

    scorer = Scorer(config, experiment="compare", seed=seed)
    first, second = (sample(rows, REAL, order[k * half : (k + 1) * half]) for k in (0, 1))
    for arm, reference, scored in (
        ("synthetic", sample(rows, REAL), {"synthetic": sample(made, "synthetic")}),
        (REAL, first, {REAL: second}),
        (NOISE, sample(rows, REAL), {NOISE: sample(noise, NOISE)}),
    ):
        progress(f"scores: {arm}")
        scorer.score_group([extractor], ALL, reference, scored, {})
    luma = luma_name(nearest.SIZE_PX)
    copies.search_folder(
        nearest.Probe(rows[extractor.name], rows[luma]),
        nearest.Probe(made[extractor.name], made[luma]),
        scorer=scorer,
    )
    scores = scorer.result()
    for line in scores.warnings:
        progress(f"note: {line}")
    return list(scores.records)
