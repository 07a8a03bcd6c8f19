"""Audit: groups of slices that belong together, what crosses the splits, what those hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.contracts import LABELS, SPLITS, UNKNOWN, SliceRecord
from stages.preprocess.duplicates import find_clusters, find_pairs, link_equal
from stages.preprocess.preparation import Prepared

# Of 7 tumour-free test subjects one moves specificity by 14 points; of 20, by 5.
LEAST_NEGATIVE_GROUPS = 20


@dataclass(frozen=True)
class Audit:
    """Copies among the slices.

    Attributes:
        group_ids: slice_id to group.
        exact: groups of slice_ids with identical pixels.
        notes: counts for the manifest.
    """

    group_ids: dict[str, str]
    exact: list[list[str]]
    notes: dict[str, Any]


def find_groups(slices: Sequence[Prepared], max_bits: int, min_correlation: float) -> Audit:
    """Group slices by subject, identical pixels and near-duplicates, over all splits at once."""
    prints = [item.fingerprint for item in slices]
    pairs = find_pairs(prints, max_bits, min_correlation)
    same_file = link_equal(
        [None if s.scan.is_volume else s.fingerprint.file_sha256 for s in slices]
    )
    same_pixels = link_equal([print.pixels_sha256 for print in prints])
    near = [(pair.first, pair.second) for pair in pairs]
    same_subject = link_equal([item.scan.subject_id for item in slices])
    copies = find_clusters(len(slices), [*same_pixels, *near])
    groups = find_clusters(len(slices), [*same_pixels, *near, *same_subject])
    members: dict[int, list[Prepared]] = defaultdict(list)
    for number, item in zip(groups, slices, strict=True):
        members[number].append(item)
    clusters: dict[int, list[Prepared]] = defaultdict(list)
    for number, item in zip(copies, slices, strict=True):
        clusters[number].append(item)
    several = [cluster for cluster in clusters.values() if len(cluster) > 1]
    conflicts = [cluster for cluster in several if len({s.scan.label for s in cluster}) > 1]
    exact: dict[str, list[str]] = defaultdict(list)
    for item in slices:
        exact[item.fingerprint.pixels_sha256].append(item.slice_id)
    identical = [sorted(ids) for ids in exact.values() if len(ids) > 1]
    names = {item.slice_id: _group_id(group) for group in members.values() for item in group}
    notes = {
        "identical_files": len(same_file),
        "identical_pixels": len(same_pixels),
        "groups_of_identical_pixels": len(identical),
        "near_duplicate_pairs": len(pairs),
        "near_duplicate_pairs_mirrored": sum(pair.is_mirrored for pair in pairs),
        "near_duplicate_clusters": len(several),
        "slices_in_clusters": sum(len(cluster) for cluster in several),
        "largest_cluster": max((len(cluster) for cluster in several), default=0),
        "clusters_with_conflicting_labels": len(conflicts),
        "subjects_joined_by_copies": _count_joined(members.values()),
        "hash_bits_at_most": max_bits,
        "correlation_at_least": min_correlation,
    }
    return Audit(names, identical, notes)


def _group_id(group: Sequence[Prepared]) -> str:
    subjects = {item.scan.subject_id for item in group}
    first = min(item.slice_id for item in group)
    if len(subjects) == 1 and (only := next(iter(subjects))) is not None:
        return only
    return first if len(group) == 1 else f"cluster-{first}"


def _count_joined(groups: Iterable[Sequence[Prepared]]) -> int:
    counts = [len({item.scan.subject_id for item in group} - {None}) for group in groups]
    return sum(count for count in counts if count > 1)


def describe_splits(records: Sequence[SliceRecord]) -> dict[str, Any]:
    """Count groups by split and class, and say how often each contrast has a tumour (JSON values).

    Groups without a tumour have no slice with one. A contrast with more tumours in training than in
    test scores below chance by itself.
    """
    labels: dict[tuple[str, str], set[str]] = defaultdict(set)
    contrasts: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for record in records:
        labels[record.split, record.group_id].add(record.label)
        if record.modality != UNKNOWN:
            contrasts[record.split, record.modality].append(record.label != "notumor")
    groups: dict[str, list[set[str]]] = {split: [] for split in SPLITS}
    for (split, _), classes in labels.items():
        groups[split].append(classes)
    without = sum(classes == {"notumor"} for classes in groups["test"])
    warnings = []
    if without < LEAST_NEGATIVE_GROUPS:
        warnings.append(
            f"the test split has {without} groups (subjects) without a tumour, fewer than "
            f"{LEAST_NEGATIVE_GROUPS}: single ones decide specificity and AUROC. Add such subjects "
            "to the source, or raise preprocess.test_fraction"
        )
    return {
        "groups": {split: len(classes) for split, classes in groups.items()},
        "groups_per_class": {
            split: {label: sum(label in each for each in classes) for label in LABELS}
            for split, classes in groups.items()
        },
        "share_of_tumors_by_contrast": {
            split: {
                modality: round(sum(rows) / len(rows), 3)
                for (home, modality), rows in sorted(contrasts.items())
                if home == split
            }
            for split in SPLITS
        },
        "warnings": warnings,
    }
