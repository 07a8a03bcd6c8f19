"""Copies of training slices among synthetic ones: the search, and planted copies as control."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import ALL, COPIED_SHARE, REAL, UNKNOWN
from pipeline.seeding import numpy_rng
from stages.components.features import nearest
from stages.components.features.extraction import iter_images, luma_name
from stages.components.features.nearest import Gallery, Nearest, Probe, Threshold
from stages.components.imaging.pixels import RgbImage
from stages.components.statistics.bootstrap import Resampled, mean_over_groups, resample
from stages.components.statistics.cohorts import Item, SeedParts
from stages.components.statistics.estimates import Estimate, MetricSpec, make_estimate
from stages.evaluate.differences import difference
from stages.evaluate.left_out import LeftOut
from stages.evaluate.reconstruction import Pass
from stages.evaluate.scorer import Scorer

PLANTED = ("exact", "shifted", "mirrored", "recoloured")
NUM_PLANTED = 48  # training slices that are planted in each way
LEAST_RECALL = 0.95
NUM_CLOSEST = 4  # pairs kept for each arm
Read = Callable[[Iterator[RgbImage]], Mapping[str, Any]]

COPIED = MetricSpec(
    key=COPIED_SHARE,
    higher_is_better=False,
    least_n=2,
    citation="share of images nearer to a training slice than 99 % of held-out slices are",
    names={COPIED_SHARE: "Called copies"},
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


def measure_recall(
    hits: NDArray[np.bool_],
    groups: Sequence[str],
    *,
    num_train: int,
    scorer: Scorer,
    seed_parts: SeedParts,
) -> Estimate:
    """Return the share of at least two planted copies, of slices of some groups, that are found."""
    means, num_groups = mean_over_groups(
        hits.astype(np.float64),
        groups,
        num_draws=scorer.config.num_bootstrap,
        rng=numpy_rng(*seed_parts, "copies", "planted"),
    )
    return make_estimate(
        RECALL,
        means,
        num_groups=num_groups,
        confidence=scorer.config.confidence,
        n_real=num_train,
        n_synthetic=len(hits),
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
    vaes: Mapping[str, Pass],
    read: Read,
    network: str,
    scorer: Scorer,
    seed_parts: SeedParts,
) -> dict[str, Any]:
    """Search every image of every arm for copies; add the shares and return the notes.

    Whatever a generator draws has passed its VAE, so training slices that passed one are planted
    too, with a row of their own beside those that were altered.

    Args:
        train: Slices that may have been copied.
        held_out: Real slices of other groups, which cannot be copies.
        arms: Images of every arm and base model.
        vaes: What passes images through each base model's VAE, by the name of its row.
        read: Turns images into features and brightness, as `extraction.extract` does.
        network: Whose features are compared.
        scorer: Gets the shares.
        seed_parts: Of the planted copies.
    """

    def probe(images: Iterator[RgbImage]) -> Probe:
        features = read(images)
        return Probe(features[network], features[luma_name(nearest.SIZE_PX)])

    train, held_out = _by_name(train), _by_name(held_out)
    arms = {arm: _by_name(items) for arm, items in arms.items()}
    gallery = Gallery(probe(iter_images(train)))
    real = gallery.nearest(probe(iter_images(held_out)))
    threshold = Threshold.of(real)
    planted, sources = _plant(gallery, train, probe, vaes, seed_parts)
    groups = [item.group for item in train]

    def find(kind: str, rule: Threshold) -> NDArray[np.bool_]:
        return is_found(rule, planted[kind], sources, groups)

    for arm, kinds in {REAL: PLANTED, **{vae: (vae,) for vae in vaes}}.items():
        recall = measure_recall(
            np.concatenate([find(kind, threshold) for kind in kinds]),
            [groups[row] for row in sources] * len(kinds),
            num_train=len(train),
            scorer=scorer,
            seed_parts=seed_parts,
        )
        scorer.add(arm, ALL, None, recall)
        if recall.value < LEAST_RECALL:
            passed = "" if arm == REAL else f" that passed through {arm}"
            scorer.warn(
                f"only {recall.value:.0%} of planted copies{passed} were found, expected at least "
                f"{LEAST_RECALL:.0%}: a low copied_share says little"
            )
    if len(held_out) < nearest.LEAST_HELD_OUT:
        scorer.warn(
            f"copied_share has its threshold from {len(held_out)} held-out slices, fewer than "
            f"{nearest.LEAST_HELD_OUT}, so it is rough"
        )
    neighbours = {arm: gallery.nearest(probe(iter_images(items))) for arm, items in arms.items()}
    if len({item.group for item in held_out}) < 2:
        scorer.warn("held-out slices are of one group, so there is no copied_share")
    else:
        _add_shares(scorer, real, held_out, neighbours, arms, len(train), seed_parts)
    ways = {
        "recall": threshold,
        "recall_by_pixels": replace(threshold, distance=-np.inf),
        "recall_by_features": replace(threshold, correlation=np.inf),
    }
    return {
        "network": network,
        "num_train": len(train),
        "num_held_out": len(held_out),
        "threshold_distance": threshold.distance,
        "threshold_correlation": threshold.correlation,
        "num_planted_each": len(sources),
        **{
            way: {kind: float(find(kind, rule).mean()) for kind in planted}
            for way, rule in ways.items()
        },
        "closest": {
            arm: closest(
                threshold,
                neighbours[arm],
                [item.name for item in items],
                [item.name for item in train],
                NUM_CLOSEST,
            )
            for arm, items in arms.items()
        },
    }


def _by_name(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item.name)


def _add_shares(
    scorer: Scorer,
    real: Nearest,
    held_out: Sequence[Item],
    neighbours: Mapping[str, Nearest],
    arms: Mapping[str, Sequence[Item]],
    num_train: int,
    seed_parts: SeedParts,
) -> None:
    """Add the floor's share and each arm's, overall, by class and by orientation."""
    pool = sorted({item.group for items in arms.values() for item in items})

    def draw(items: Sequence[Item], name: str, pool: Sequence[str] | None) -> Resampled:
        return resample(
            np.zeros((len(items), 1)),
            [item.group for item in items],
            num_draws=scorer.config.num_bootstrap,
            rng=numpy_rng(*seed_parts, "copies", name),
            pool=pool,
        )

    left_out = LeftOut(real, draw(held_out, REAL, None))
    drawn = {arm: draw(items, "arms", pool).row_weights for arm, items in arms.items()}
    planes = {item.orientation for item in held_out} - {UNKNOWN}
    for group in (ALL, *sorted({item.label for item in held_out}), *sorted(planes)):
        floor: Estimate | None = None
        for arm, items in {REAL: held_out, **arms}.items():
            rows = _rows(items, group)
            if len(rows) < 2:
                continue
            share = make_estimate(
                COPIED,
                left_out.held_out_share(rows)
                if arm == REAL
                else left_out.share(neighbours[arm].take(rows), drawn[arm][:, rows]),
                num_groups=len({items[row].group for row in rows}),
                confidence=scorer.config.confidence,
                n_real=num_train,
                n_synthetic=len(rows),
            )
            scorer.add(arm, group, None, share)
            if arm == REAL:
                floor = share
            elif group == ALL and floor is not None and len(share.draws) and len(floor.draws):
                row = difference(share, floor, confidence=scorer.config.confidence)
                scorer.add_difference(f"{arm} - {REAL}", row, features=None)


def search_folder(real: Probe, made: Probe, *, scorer: Scorer) -> None:
    """Search a folder for copies of another; each real image's nearest other one is held out."""
    gallery = Gallery(real)
    held_out = gallery.nearest(real, leave_out=range(len(real)))
    drawn = {
        name: resample(
            np.zeros((len(sample), 1)),
            range(len(sample)),
            num_draws=scorer.config.num_bootstrap,
            rng=numpy_rng(scorer.seed, "compare", "copies", name),
        )
        for name, sample in ((REAL, real), ("synthetic", made))
    }
    left_out = LeftOut(held_out, drawn[REAL])
    floor = left_out.held_out_share(range(len(real)))
    copied = left_out.share(gallery.nearest(made), drawn["synthetic"].row_weights)
    for arm, values, count in (("synthetic", copied, len(made)), (REAL, floor, len(real))):
        share = make_estimate(
            COPIED,
            values,
            num_groups=count,
            confidence=scorer.config.confidence,
            n_real=len(real),
            n_synthetic=count,
        )
        scorer.add(arm, ALL, None, share)


def _plant(
    gallery: Gallery,
    train: Sequence[Item],
    probe: Callable[[Iterator[RgbImage]], Probe],
    vaes: Mapping[str, Pass],
    seed_parts: SeedParts,
) -> tuple[dict[str, Nearest], list[int]]:
    """Return the neighbours of planted copies, by kind and by VAE, and the rows they copy."""
    rng = numpy_rng(*seed_parts, "planted")
    sources = [int(row) for row in rng.permutation(len(train))[:NUM_PLANTED]]
    planted = {}
    for kind in (*PLANTED, *vaes):
        images = iter_images([train[row] for row in sources])
        made = vaes[kind](images) if kind in vaes else iter_planted(images, kind, rng)
        planted[kind] = gallery.nearest(probe(made))
    return planted, sources


def _rows(items: Sequence[Item], group: str) -> list[int]:
    return [
        row
        for row, item in enumerate(items)
        if group == ALL or group in (item.label, item.orientation)
    ]
