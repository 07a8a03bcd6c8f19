"""The search for copies in a run, and in a folder: who is searched, and what is recorded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.contracts import ALL, REAL, UNKNOWN
from pipeline.seeding import numpy_rng
from stages.components import diagnostics
from stages.components.features import nearest
from stages.components.features.extraction import luma_name
from stages.components.features.nearest import Gallery, Nearest, Probe, Threshold
from stages.components.imaging.pixels import RgbImage
from stages.components.samples import Item, SeedParts, iter_images
from stages.components.scorer import Scorer
from stages.evaluate import copies

Read = Callable[[Iterator[RgbImage]], Mapping[str, Any]]
NUM_CLOSEST = 4  # pairs kept for each arm


def search(
    *,
    train: Sequence[Item],
    held_out: Sequence[Item],
    arms: Mapping[str, Sequence[Item]],
    read: Read,
    network: str,
    scorer: Scorer,
    seed_parts: SeedParts,
) -> dict[str, Any]:
    """Search every image of every arm for copies; add the shares and return the notes.

    Args:
        train: Slices that may have been copied.
        held_out: Real slices of other groups, which cannot be copies.
        arms: Images of every arm and base model.
        read: Turns images into features and brightness, as `scoring.extract` does.
        network: Whose features are compared.
        scorer: Gets the shares.
        seed_parts: Of the planted copies.
    """

    def probe(images: Iterator[RgbImage]) -> Probe:
        found = read(images)
        return Probe(found[network], found[luma_name(nearest.SIZE_PX)])

    train = sorted(train, key=lambda item: item.name)
    gallery = Gallery(probe(iter_images(train)))
    real = gallery.nearest(probe(iter_images(held_out)))
    threshold = Threshold.of(real)
    innocent = copies.cross_fit(real, [item.group for item in held_out])
    confidence = scorer.config.confidence
    planes = {item.orientation for item in held_out} - {UNKNOWN}
    groups = [ALL, *sorted({item.label for item in held_out}), *sorted(planes)]

    def add(arm: str, items: Sequence[Item], called: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        for group in groups:
            rows, floor = _rows(items, group), _rows(held_out, group)
            if len(rows) >= 2:
                result = copies.share(
                    called[rows],
                    floor=None if arm == REAL else innocent[floor],
                    num_train=len(train),
                    confidence=confidence,
                )
                scorer.add_share(arm, group, copies.COPIED, result)

    recall = _plant(gallery, threshold, train, probe, seed_parts)
    found_all = sum(recall.values()) / len(recall)
    num_planted = len(recall) * min(copies.NUM_PLANTED, len(train))
    low, high = diagnostics.wilson(found_all * num_planted, num_planted, confidence=confidence)
    scorer.add_share(
        REAL,
        ALL,
        copies.RECALL,
        {
            "value": found_all,
            "low": low,
            "high": high,
            "n_real": len(train),
            "n_synthetic": num_planted,
            "p": None,
        },
    )
    if found_all < copies.LEAST_RECALL:
        scorer.warn(
            f"only {found_all:.0%} of planted copies were found, expected at least "
            f"{copies.LEAST_RECALL:.0%}: a low copied_share says little"
        )
    if len(held_out) < nearest.LEAST_HELD_OUT:
        scorer.warn(
            f"copied_share has its threshold from {len(held_out)} held-out slices, fewer than "
            f"{nearest.LEAST_HELD_OUT}, so it is rough"
        )
    add(REAL, held_out, innocent)
    pairs: dict[str, list[dict[str, Any]]] = {}
    for arm, unsorted in arms.items():
        items = sorted(unsorted, key=lambda item: item.name)
        found = gallery.nearest(probe(iter_images(items)))
        add(arm, items, threshold.is_copy(found))
        pairs[arm] = copies.closest(
            threshold,
            found,
            [item.name for item in items],
            [item.name for item in train],
            NUM_CLOSEST,
        )
    return {
        "network": network,
        "num_train": len(train),
        "num_held_out": len(held_out),
        "threshold_distance": threshold.distance,
        "threshold_correlation": threshold.correlation,
        "num_planted_each": min(copies.NUM_PLANTED, len(train)),
        "recall": recall,
        "closest": pairs,
    }


def search_folder(real: Probe, made: Probe, *, scorer: Scorer) -> None:
    """Search a folder for copies of another; each real image's nearest other one is held out."""
    gallery = Gallery(real)
    held_out = gallery.nearest(real, leave_out=range(len(real)))
    threshold = Threshold.of(held_out)
    innocent = copies.cross_fit(held_out, [str(row) for row in range(len(real))])
    found = threshold.is_copy(gallery.nearest(made))
    for arm, called, floor in (("synthetic", found, innocent), (REAL, innocent, None)):
        result = copies.share(
            called, floor=floor, num_train=len(real), confidence=scorer.config.confidence
        )
        scorer.add_share(arm, ALL, copies.COPIED, result)


def _plant(
    gallery: Gallery,
    threshold: Threshold,
    train: Sequence[Item],
    probe: Callable[[Iterator[RgbImage]], Probe],
    seed_parts: SeedParts,
) -> dict[str, float]:
    """Return the share of planted copies that are found, by kind."""
    rng = numpy_rng(*seed_parts, "planted")
    sources = [int(row) for row in rng.permutation(len(train))[: copies.NUM_PLANTED]]
    groups = [item.group for item in train]
    recall = {}
    for kind in copies.PLANTED:
        images = iter_images([train[row] for row in sources])
        found: Nearest = gallery.nearest(probe(copies.iter_planted(images, kind, rng)))
        recall[kind] = float(copies.is_found(threshold, found, sources, groups).mean())
    return recall


def _rows(items: Sequence[Item], group: str) -> list[int]:
    return [
        row
        for row, item in enumerate(items)
        if group == ALL or group in (item.label, item.orientation)
    ]
