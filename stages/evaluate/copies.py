"""Copies of training slices among synthetic ones: the search, and planted copies as control."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import ALL, REAL, UNKNOWN
from pipeline.seeding import numpy_rng
from stages.components.features import nearest
from stages.components.features.extraction import iter_images, luma_name
from stages.components.features.nearest import Gallery, Nearest, Probe, Threshold
from stages.components.imaging.pixels import RgbImage
from stages.components.statistics import proportions
from stages.components.statistics.cohorts import Item, SeedParts
from stages.components.statistics.estimates import Estimate, MetricSpec
from stages.evaluate.scorer import Scorer

PLANTED = ("exact", "shifted", "mirrored", "recoloured")
NUM_PLANTED = 48  # training slices that are planted in each way
LEAST_RECALL = 0.95
NUM_CLOSEST = 4  # pairs kept for each arm
Read = Callable[[Iterator[RgbImage]], Mapping[str, Any]]

COPIED = MetricSpec(
    key="copied_share",
    higher_is_better=False,
    least_n=2,
    citation="share of images nearer to a training slice than 99 % of held-out slices are",
    names={"copied_share": "Called copies"},
    is_share=True,
)
RECALL = MetricSpec(
    key="copy_recall",
    higher_is_better=True,
    least_n=2,
    citation="share of planted copies (exact, shifted, mirrored, recoloured) that are found",
    is_share=True,
)


def iter_planted(
    images: Iterator[RgbImage], kind: str, rng: np.random.Generator
) -> Iterator[RgbImage]:
    """Yield altered copies of images: what a generator that copies might give.

    Shifts go up to 5 % of the side, filled with 0; recolouring changes gamma (0.7 to 1.4), gain
    (0.85 to 1.15) and the balance of channels (by 10 %).
    """
    for image in images:
        if kind == "shifted":
            reach = max(1, round(0.05 * image.shape[0]))
            down, across = rng.integers(1, reach + 1, 2) * rng.choice([-1, 1], 2)
            yield _shift(image, int(down), int(across))
        elif kind == "mirrored":
            yield np.ascontiguousarray(image[:, ::-1])
        elif kind == "recoloured":
            gamma, gain = np.exp(rng.uniform(-0.35, 0.35)), rng.uniform(0.85, 1.15)
            tint = rng.uniform(0.9, 1.1, 3)
            made = 255 * gain * tint * (image / 255) ** gamma
            yield np.asarray(np.clip(np.rint(made), 0, 255), dtype=np.uint8)
        else:
            yield image


def _shift(image: RgbImage, down: int, across: int) -> RgbImage:
    moved = np.roll(image, (down, across), axis=(0, 1))
    moved[slice(0, down) if down > 0 else slice(down, None)] = 0
    moved[:, slice(0, across) if across > 0 else slice(across, None)] = 0
    return moved


def cross_fit(held_out: Nearest, groups: Sequence[str]) -> NDArray[np.bool_]:
    """Call held-out slices by the threshold of the other half of their groups, (n,)."""
    order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    half = np.array([order[group] % 2 for group in groups])
    called = np.zeros(len(groups), dtype=bool)
    for side in (0, 1):
        half_rows, other = np.flatnonzero(half == side), np.flatnonzero(half != side)
        if len(other):
            called[half_rows] = Threshold.of(held_out.take(other)).is_copy(held_out.take(half_rows))
    return called


def share(
    called: NDArray[np.bool_],
    *,
    floor: NDArray[np.bool_] | None,
    num_train: int,
    confidence: float,
) -> Estimate:
    """Return a share of copies with Wilson's interval and Fisher's p against the floor's share.

    Fisher's exact test is the permutation test of two shares.
    """
    from scipy.stats import fisher_exact

    count, hits = len(called), int(called.sum())
    low, high = proportions.wilson(hits, count, confidence=confidence)
    p = None
    if floor is not None and len(floor):
        table = [[hits, count - hits], [int(floor.sum()), int((~floor).sum())]]
        p = float(fisher_exact(table, alternative="greater").pvalue)
    return Estimate(COPIED, hits / count, low, high, np.zeros(0), num_train, count, p)


def is_found(
    threshold: Threshold, neighbours: Nearest, sources: Sequence[int], groups: Sequence[str]
) -> NDArray[np.bool_]:
    """Tell which planted copies are called copies *and* traced to a slice of their own group."""
    traced = [
        groups[source] in (groups[a], groups[b])
        for source, a, b in zip(sources, neighbours.by_features, neighbours.by_pixels, strict=True)
    ]
    hits: NDArray[np.bool_] = threshold.is_copy(neighbours) & np.asarray(traced, dtype=bool)
    return hits


def closest(
    threshold: Threshold,
    neighbours: Nearest,
    names: Sequence[str],
    train: Sequence[str],
    count: int,
) -> list[dict[str, Any]]:
    """List the images nearest to a training slice, each with that slice, as JSON objects."""
    excess = threshold.excess(neighbours)
    rows = []
    for row in np.argsort(-excess, kind="stable")[:count]:
        by_pixels = neighbours.correlation[row] / threshold.correlation >= threshold.distance / max(
            neighbours.distance[row], 1e-12
        )
        nearest = neighbours.by_pixels[row] if by_pixels else neighbours.by_features[row]
        rows.append(
            {
                "image": names[row],
                "train": train[nearest],
                "by": "pixels" if by_pixels else "features",
                "correlation": float(neighbours.correlation[row]),
                "distance": float(neighbours.distance[row]),
                "copy": bool(excess[row] > 1),
            }
        )
    return rows


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
        read: Turns images into features and brightness, as `extraction.extract` does.
        network: Whose features are compared.
        scorer: Gets the shares.
        seed_parts: Of the planted copies.
    """

    def probe(images: Iterator[RgbImage]) -> Probe:
        features = read(images)
        return Probe(features[network], features[luma_name(nearest.SIZE_PX)])

    train = sorted(train, key=lambda item: item.name)
    gallery = Gallery(probe(iter_images(train)))
    real = gallery.nearest(probe(iter_images(held_out)))
    threshold = Threshold.of(real)
    innocent = cross_fit(real, [item.group for item in held_out])
    confidence = scorer.config.confidence
    planes = {item.orientation for item in held_out} - {UNKNOWN}
    groups = [ALL, *sorted({item.label for item in held_out}), *sorted(planes)]

    def add(arm: str, items: Sequence[Item], called: NDArray[np.bool_]) -> None:
        for group in groups:
            rows, floor = _rows(items, group), _rows(held_out, group)
            if len(rows) >= 2:
                result = share(
                    called[rows],
                    floor=None if arm == REAL else innocent[floor],
                    num_train=len(train),
                    confidence=confidence,
                )
                scorer.add(arm, group, None, result)

    recall = _plant(gallery, threshold, train, probe, seed_parts)
    share_found = sum(recall.values()) / len(recall)
    num_planted = len(recall) * min(NUM_PLANTED, len(train))
    low, high = proportions.wilson(share_found * num_planted, num_planted, confidence=confidence)
    planted = Estimate(RECALL, share_found, low, high, np.zeros(0), len(train), num_planted)
    scorer.add(REAL, ALL, None, planted)
    if share_found < LEAST_RECALL:
        scorer.warn(
            f"only {share_found:.0%} of planted copies were found, expected at least "
            f"{LEAST_RECALL:.0%}: a low copied_share says little"
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
        neighbours = gallery.nearest(probe(iter_images(items)))
        add(arm, items, threshold.is_copy(neighbours))
        pairs[arm] = closest(
            threshold,
            neighbours,
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
        "num_planted_each": min(NUM_PLANTED, len(train)),
        "recall": recall,
        "closest": pairs,
    }


def search_folder(real: Probe, made: Probe, *, scorer: Scorer) -> None:
    """Search a folder for copies of another; each real image's nearest other one is held out."""
    gallery = Gallery(real)
    held_out = gallery.nearest(real, leave_out=range(len(real)))
    threshold = Threshold.of(held_out)
    innocent = cross_fit(held_out, [str(row) for row in range(len(real))])
    copies = threshold.is_copy(gallery.nearest(made))
    for arm, called, floor in (("synthetic", copies, innocent), (REAL, innocent, None)):
        result = share(
            called, floor=floor, num_train=len(real), confidence=scorer.config.confidence
        )
        scorer.add(arm, ALL, None, result)


def _plant(
    gallery: Gallery,
    threshold: Threshold,
    train: Sequence[Item],
    probe: Callable[[Iterator[RgbImage]], Probe],
    seed_parts: SeedParts,
) -> dict[str, float]:
    """Return the share of planted copies that are found, by kind."""
    rng = numpy_rng(*seed_parts, "planted")
    sources = [int(row) for row in rng.permutation(len(train))[:NUM_PLANTED]]
    groups = [item.group for item in train]
    recall = {}
    for kind in PLANTED:
        images = iter_images([train[row] for row in sources])
        neighbours: Nearest = gallery.nearest(probe(iter_planted(images, kind, rng)))
        recall[kind] = float(is_found(threshold, neighbours, sources, groups).mean())
    return recall


def _rows(items: Sequence[Item], group: str) -> list[int]:
    return [
        row
        for row, item in enumerate(items)
        if group == ALL or group in (item.label, item.orientation)
    ]
