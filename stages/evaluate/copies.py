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
from stages.components.statistics.bootstrap import mean_over_groups
from stages.components.statistics.cohorts import Item, SeedParts
from stages.components.statistics.estimates import Estimate, MetricSpec, make_estimate
from stages.evaluate.differences import difference
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


def measure_share(
    spec: MetricSpec,
    called: NDArray[np.bool_],
    groups: Sequence[str],
    *,
    num_train: int,
    scorer: Scorer,
    seed_parts: SeedParts,
) -> Estimate:
    """Return the share of at least two images of some groups that were called copies."""
    means, num_groups = mean_over_groups(
        called.astype(np.float64),
        groups,
        num_draws=scorer.config.num_bootstrap,
        rng=numpy_rng(*seed_parts, "copies", "bootstrap"),
    )
    return make_estimate(
        spec,
        means,
        num_groups=num_groups,
        confidence=scorer.config.confidence,
        n_real=num_train,
        n_synthetic=len(called),
    )


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
    planes = {item.orientation for item in held_out} - {UNKNOWN}
    groups = [ALL, *sorted({item.label for item in held_out}), *sorted(planes)]

    floor: list[Estimate] = []

    def add(arm: str, items: Sequence[Item], called: NDArray[np.bool_]) -> None:
        for group in groups:
            rows = _rows(items, group)
            if len(rows) < 2:
                continue
            # arms share their prompts and so their draws, real slices have draws of their own
            parts = (*seed_parts, group, *([REAL] if arm == REAL else []))
            units = [items[row].group for row in rows]
            result = measure_share(
                COPIED, called[rows], units, num_train=len(train), scorer=scorer, seed_parts=parts
            )
            scorer.add(arm, group, None, result)
            if group == ALL and arm == REAL:
                floor.append(result)
            elif group == ALL and len(result.draws) and len(floor[0].draws):
                row = difference(result, floor[0], confidence=scorer.config.confidence)
                scorer.add_difference(f"{arm} - {REAL}", row, features=None)

    hits, sources = _plant(gallery, threshold, train, probe, seed_parts)
    planted = measure_share(
        RECALL,
        np.concatenate(list(hits.values())),
        sources * len(hits),
        num_train=len(train),
        scorer=scorer,
        seed_parts=(*seed_parts, "planted"),
    )
    scorer.add(REAL, ALL, None, planted)
    if planted.value < LEAST_RECALL:
        scorer.warn(
            f"only {planted.value:.0%} of planted copies were found, expected at least "
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
        "recall": {kind: float(row.mean()) for kind, row in hits.items()},
        "closest": pairs,
    }


def search_folder(real: Probe, made: Probe, *, scorer: Scorer) -> None:
    """Search a folder for copies of another; each real image's nearest other one is held out."""
    gallery = Gallery(real)
    held_out = gallery.nearest(real, leave_out=range(len(real)))
    threshold = Threshold.of(held_out)
    innocent = cross_fit(held_out, [str(row) for row in range(len(real))])
    copies = threshold.is_copy(gallery.nearest(made))
    for arm, called in (("synthetic", copies), (REAL, innocent)):
        result = measure_share(
            COPIED,
            called,
            [str(row) for row in range(len(called))],
            num_train=len(real),
            scorer=scorer,
            seed_parts=(scorer.seed, "compare", arm),
        )
        scorer.add(arm, ALL, None, result)


def _plant(
    gallery: Gallery,
    threshold: Threshold,
    train: Sequence[Item],
    probe: Callable[[Iterator[RgbImage]], Probe],
    seed_parts: SeedParts,
) -> tuple[dict[str, NDArray[np.bool_]], list[str]]:
    """Return which planted copies are found, by kind, and the group of each."""
    rng = numpy_rng(*seed_parts, "planted")
    sources = [int(row) for row in rng.permutation(len(train))[:NUM_PLANTED]]
    groups = [item.group for item in train]
    hits = {}
    for kind in PLANTED:
        images = iter_images([train[row] for row in sources])
        neighbours: Nearest = gallery.nearest(probe(iter_planted(images, kind, rng)))
        hits[kind] = is_found(threshold, neighbours, sources, groups)
    return hits, [groups[row] for row in sources]


def _rows(items: Sequence[Item], group: str) -> list[int]:
    return [
        row
        for row, item in enumerate(items)
        if group == ALL or group in (item.label, item.orientation)
    ]
