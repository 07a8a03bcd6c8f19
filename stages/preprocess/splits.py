"""Splits: whole groups only, stratified by class x contrast x plane, whatever the order of files.

A group is a subject, or a cluster of near-duplicates where the source names no subjects. Its place
is decided by its class, contrasts and planes, and among groups of equal ones by a hash of its name
and the run's seed, never by its position in a list. By class alone, contrast would mirror: where
both form an exact factorial, a contrast whose tumours are drawn for one split too often has them
too seldom in the other, and what learns it scores below chance. scikit-learn's StratifiedGroupKFold
knows neither a fraction nor a least number of groups.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.contracts import LABELS, SPLITS, Label, Modality, Orientation, Split
from pipeline.errors import DataError, SplitLeakError
from pipeline.seeding import derive_seed


@dataclass(frozen=True)
class Member:
    """A slice as the splitter sees it."""

    slice_id: str
    group_id: str
    label: Label
    published_split: Split | None
    modality: Modality = "unknown"
    orientation: Orientation = "unknown"


@dataclass(frozen=True)
class Stratum:
    """What groups have in common that are as good as each other for a split."""

    label: Label
    modalities: tuple[Modality, ...]
    orientations: tuple[Orientation, ...]

    @property
    def traits(self) -> tuple[tuple[object, ...], ...]:
        """What every split is to have in proportion: margins first, cells last."""
        kinds = (self.label, self.label != "notumor")
        return tuple(
            (kind, *rest)
            for kind in kinds
            for rest in ((), (self.modalities,), (self.orientations,),
                         (self.modalities, self.orientations))
        )  # fmt: skip


@dataclass
class Assignment:
    """Where each slice goes.

    Attributes:
        splits: slice_id to split.
        leaked: slice_id to the published split that it was dropped from.
        num_leaking_groups: groups that crossed the published splits.
    """

    splits: dict[str, Split] = field(default_factory=dict)
    leaked: dict[str, Split] = field(default_factory=dict)
    num_leaking_groups: int = 0


def assign_splits(
    members: Sequence[Member],
    *,
    val_fraction: float,
    test_fraction: float,
    keep_published_test: bool,
    leaked_files: Literal["drop_test", "drop_train"],
    test_as_val: int,
    seed: int,
) -> Assignment:
    """Put every group into one split, with contrasts and planes in proportion within each class.

    With a published test split that is kept, its groups stay test; a group that also has members in
    a published training or validation split loses its test files ("drop_test") or the others
    ("drop_train"). `test_as_val` slices, in whole groups and with the classes in proportion, then
    move from test to val, and no training group does; otherwise val is the published one, or
    `val_fraction` of the training groups. Without a published test split, `test_fraction` of all
    groups becomes test. Every class keeps at least one group in each split that it can fill.

    Raises:
        DataError: `test_as_val` leaves no test slice, or asks for a test split nobody published.
        SplitLeakError: A group stands in two splits (an error of ours, checked all the same).
    """
    result = Assignment()
    groups: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        groups[member.group_id].append(member)
    has_test = keep_published_test and any(m.published_split == "test" for m in members)
    homes: dict[str, Split] = {}
    if has_test:
        homes = _published_homes(groups, leaked_files, result)
    elif test_as_val:
        raise DataError(
            f"test_as_val is {test_as_val}, but no published test split is kept; set it to 0"
        )
    dropped = set(result.leaked)
    strata = {name: _find_stratum(group, dropped) for name, group in groups.items()}
    if not has_test:
        _draw(homes, strata, groups.keys() - homes.keys(), test_fraction, "test", seed)
    if test_as_val:
        _move_to_val(homes, strata, groups, dropped, test_as_val, seed)
    elif "val" not in homes.values():
        training = {name for name in groups if homes.get(name, "train") == "train"}
        _draw(homes, strata, training, val_fraction, "val", seed)
    for name, group in groups.items():
        for member in group:
            if member.slice_id not in dropped:
                result.splits[member.slice_id] = homes.get(name, "train")
    kept = [m for m in members if m.slice_id not in dropped]
    verify_no_leak((m.group_id, result.splits[m.slice_id]) for m in kept)
    return result


def _published_homes(
    groups: Mapping[str, list[Member]], leaked_files: str, result: Assignment
) -> dict[str, Split]:
    homes: dict[str, Split] = {}
    order: tuple[Split, ...] = SPLITS if leaked_files == "drop_test" else ("test", "val", "train")
    for name, group in groups.items():
        published = {member.published_split or "train" for member in group}
        home = next(split for split in order if split in published)
        homes[name] = home
        if len(published) > 1:
            result.num_leaking_groups += 1
            for member in group:
                if (member.published_split or "train") != home:
                    result.leaked[member.slice_id] = member.published_split or "train"
    return homes


def _find_stratum(group: Sequence[Member], dropped: set[str]) -> Stratum:
    """Return the commonest class of a group (ties in the order of LABELS), contrasts and planes."""
    kept = [m for m in group if m.slice_id not in dropped]
    counts = Counter(m.label for m in kept)
    return Stratum(
        label=max(LABELS, key=lambda label: counts[label]),
        modalities=tuple(sorted({m.modality for m in kept})),
        orientations=tuple(sorted({m.orientation for m in kept})),
    )


def _draw(
    homes: dict[str, Split],
    strata: Mapping[str, Stratum],
    names: set[str],
    fraction: float,
    split: Split,
    seed: int,
) -> None:
    """Send a fraction of the named groups of each class to a split."""
    ordered = order_evenly({name: strata[name] for name in names}, seed)
    for label in LABELS:
        ranked = [name for name in ordered if strata[name].label == label]
        count = round(fraction * len(ranked))
        if len(ranked) >= 2:  # one for here, one for the rest
            count = min(max(count, 1), len(ranked) - 1)
        for name in ranked[:count]:
            homes[name] = split


def _move_to_val(
    homes: dict[str, Split],
    strata: Mapping[str, Stratum],
    groups: Mapping[str, list[Member]],
    dropped: set[str],
    wanted: int,
    seed: int,
) -> None:
    """Move whole test groups to val until each class has given its share of `wanted` slices."""
    sizes = {
        name: sum(member.slice_id not in dropped for member in groups[name])
        for name, split in homes.items()
        if split == "test"
    }
    total = sum(sizes.values())
    if wanted >= total:
        raise DataError(f"test_as_val is {wanted}, but the test split holds {total} slices")
    ordered = order_evenly({name: strata[name] for name in sizes}, seed)
    for label in LABELS:
        ranked = [name for name in ordered if strata[name].label == label]
        quota = wanted * sum(sizes[name] for name in ranked) / total
        moved = 0
        for name in ranked[:-1]:  # one group stays for the test
            # A group that overshoots by more than it falls short is left for a smaller one.
            if moved + sizes[name] / 2 <= quota:
                homes[name] = "val"
                moved += sizes[name]


def order_evenly(strata: Mapping[str, Stratum], seed: int) -> list[str]:
    """Order groups so that every beginning of the list has all traits as the whole list has them.

    At each step comes the stratum whose traits lag most behind their share, with its first group by
    hash; of strata that lag alike, the one whose group has the lower hash.

    Source: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", ECML 2011
    (greedy stratification by the label that is most wanted); here all traits at once, as in
    Welling, "Herding Dynamical Weights to Learn", ICML 2009.
    """
    order = rank(list(strata), seed)
    place = {name: number for number, name in enumerate(order)}
    waiting: dict[Stratum, list[str]] = defaultdict(list)
    for name in reversed(order):
        waiting[strata[name]].append(name)
    totals = Counter(trait for name in order for trait in strata[name].traits)
    taken: Counter[tuple[object, ...]] = Counter()
    ordered: list[str] = []
    while waiting:
        wanted = (len(ordered) + 1) / len(order)

        def lead(stratum: Stratum, wanted: float = wanted) -> tuple[float, int]:
            excess = sum(taken[trait] - wanted * totals[trait] for trait in stratum.traits)
            return round(excess, 9), place[waiting[stratum][-1]]

        stratum = min(waiting, key=lead)
        ordered.append(waiting[stratum].pop())
        taken.update(stratum.traits)
        if not waiting[stratum]:
            del waiting[stratum]
    return ordered


def rank(names: Sequence[str], seed: int) -> list[str]:
    """Sort names by a hash of themselves and the seed, so that files' order does not matter."""
    return sorted(names, key=lambda name: (derive_seed(seed, "split", name), name))


def verify_no_leak(rows: Iterable[tuple[str, Split]]) -> None:
    """Check (group, split) rows, one for each slice.

    Raises:
        SplitLeakError: A group stands in more than one split; the message counts its slices.
    """
    counts: dict[str, Counter[Split]] = defaultdict(Counter)
    for group_id, split in rows:
        counts[group_id][split] += 1
    leaks = sorted(group_id for group_id, places in counts.items() if len(places) > 1)
    if leaks:
        parts = [f"{s} ({counts[leaks[0]][s]} slices)" for s in SPLITS if counts[leaks[0]][s]]
        raise SplitLeakError(
            f"group {leaks[0]!r} is in {' and '.join(parts)}; {len(leaks)} such groups. "
            "Split by group_id, then rerun preprocess."
        )


def limit_training(
    members: Sequence[Member], splits: Mapping[str, Split], max_per_class: int, seed: int
) -> set[str]:
    """Name the training slices beyond `max_per_class` of each class, chosen by hash of slice_id."""
    beyond: set[str] = set()
    for label in LABELS:
        names = [m.slice_id for m in members if m.label == label]
        training = [name for name in names if splits.get(name) == "train"]
        beyond.update(rank(training, seed)[max_per_class:])
    return beyond
