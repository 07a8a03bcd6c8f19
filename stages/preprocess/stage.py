"""Decode, crop to the head, pad, resize; find copies; split by group; write slices and an audit.

Reads: a source plug-in. Writes: `images/SPLIT/SLICE_ID.png`, `masks/SPLIT/SLICE_ID.png` where the
source has masks, `records.jsonl` (`SliceRecord`, sorted by split and slice_id) and `skipped.jsonl`.

Invariants: every slice keeps its aspect ratio; copies are found before anything is split; a group
(subject, or cluster of near-duplicates) lies in one split; the result depends neither on the number
of workers nor on the order of files.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import registry
from pipeline.contracts import (
    LABELS,
    SPLITS,
    ArtifactWriter,
    Context,
    SkippedRecord,
    SliceRecord,
    Split,
    Stage,
    write_records,
)
from pipeline.errors import DataError, SkippedTooManyError
from pipeline.settings import PreprocessConfig
from stages.components.imaging.pixels import RESIZE_KERNEL
from stages.components.imaging.scans import Scan
from stages.preprocess.audit import Audit, describe_splits, find_groups
from stages.preprocess.journal import STAGING, iter_resumed
from stages.preprocess.preparation import Job, Prepared, image_name, mask_name
from stages.preprocess.splits import Assignment, Member, assign_splits, limit_training

PROGRESS_EVERY_S = 5.0  # phantoms take a second or two each, slices in files a millisecond


@dataclass(frozen=True)
class PreprocessInputs:
    """Preprocess starts from a source, not from an artifact."""


def choose_slices(
    slices: Sequence[Prepared], audit: Audit, config: PreprocessConfig, seed: int
) -> tuple[dict[str, Split], dict[str, Any]]:
    """Assign splits, keep one of identical slices in each, and limit training; with counts.

    Identical pixels under two labels cannot both be right: all copies are left out.
    """
    labels = {item.slice_id: item.scan.label for item in slices}
    contradictory = {s for ids in audit.exact if len({labels[s] for s in ids}) > 1 for s in ids}
    members = [
        Member(
            slice_id=s.slice_id,
            group_id=audit.group_ids[s.slice_id],
            label=s.scan.label,
            published_split=s.scan.published_split,
            modality=s.scan.modality,
            orientation=s.orientation,
        )
        for s in slices
        if s.slice_id not in contradictory
    ]
    assignment = assign_splits(
        members,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        keep_published_test=config.keep_published_test,
        leaked_files=config.leaked_files,
        test_as_val=config.test_as_val,
        seed=seed,
    )
    splits = dict(assignment.splits)
    repeated = set()
    for ids in audit.exact:
        kept: set[Split] = set()
        for slice_id in ids:
            split = splits.get(slice_id)
            if split in kept:
                repeated.add(slice_id)
            elif split is not None:
                kept.add(split)
    for slice_id in repeated:
        del splits[slice_id]
    beyond: set[str] = set()
    if config.max_per_class is not None:
        beyond = limit_training(members, splits, config.max_per_class, seed)
        for slice_id in beyond:
            del splits[slice_id]
    notes = {
        **_leak_notes(assignment, labels),
        "dropped_identical_within_a_split": len(repeated),
        "dropped_identical_with_two_labels": len(contradictory),
        "dropped_beyond_max_per_class": len(beyond),
    }
    return splits, notes


def _leak_notes(assignment: Assignment, labels: dict[str, Any]) -> dict[str, Any]:
    lost = Counter((split, labels[slice_id]) for slice_id, split in assignment.leaked.items())
    return {
        "groups_across_published_splits": assignment.num_leaking_groups,
        "dropped_as_leaked": len(assignment.leaked),
        "dropped_as_leaked_from": {
            split: {label: lost[split, label] for label in LABELS if lost[split, label]}
            for split in SPLITS
            if any(name == split for name, _ in lost)
        },
    }


def publish_slice(
    item: Prepared, split: Split, group_id: str, output: ArtifactWriter[SliceRecord]
) -> SliceRecord:
    """Move a staged slice to its split and return its record."""
    image_path = f"images/{split}/{item.slice_id}.png"
    staging = output.scratch(STAGING)
    os.replace(staging / image_name(item.slice_id), output.path(image_path))
    mask_path = None
    if item.has_mask:
        mask_path = f"masks/{split}/{item.slice_id}.png"
        os.replace(staging / mask_name(item.slice_id), output.path(mask_path))
    return SliceRecord(
        slice_id=item.slice_id,
        subject_id=item.scan.subject_id,
        group_id=group_id,
        source=item.scan.source,
        split=split,
        label=item.scan.label,
        orientation=item.orientation,
        modality=item.scan.modality,
        image_path=image_path,
        mask_path=mask_path,
        original=item.scan.original,
        original_width_px=item.width_px,
        original_height_px=item.height_px,
        truth=item.truth,
    )


def count_slices(records: Sequence[SliceRecord]) -> dict[str, dict[str, dict[str, int]]]:
    """Count split x class x orientation, zeros left out."""
    counts = Counter((record.split, record.label, record.orientation) for record in records)
    return {
        split: {
            label: {o: n for (s, c, o), n in sorted(counts.items()) if (s, c) == (split, label)}
            for label in LABELS
        }
        for split in SPLITS
    }


def now_and_then(progress: Callable[[str], None]) -> Callable[[str], None]:
    """Pass on at most one line in `PROGRESS_EVERY_S` seconds."""
    last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_EVERY_S:
            progress(line)
            last = time.monotonic()

    return say


def announce(
    scans: Iterable[Scan], total: int | None, progress: Callable[[str], None]
) -> Iterator[Scan]:
    """Hand scans on, and say how many a source has found or made so far."""
    say = now_and_then(progress)
    of = "" if total is None else f" of {total}"
    for number, scan in enumerate(scans, start=1):
        say(f"preprocess: {number}{of} scans there")
        yield scan


def run(
    config: PreprocessConfig,
    inputs: PreprocessInputs,
    output: ArtifactWriter[SliceRecord],
    context: Context,
) -> None:
    """Prepare every slice of the source once.

    Raises:
        DataError: The source cannot be read at all, or yields nothing.
        SkippedTooManyError: More scans than `max_skipped_fraction` are unusable.
    """
    plugin = registry.find(registry.SOURCES, config.source.name)
    settings = plugin.Settings.model_validate(config.source.settings)
    total = plugin.count_scans(settings) if hasattr(plugin, "count_scans") else None
    scans = announce(
        plugin.iter_scans(
            settings, seed=context.seed, cache_dir=context.cache_dir / config.source.name
        ),
        total,
        context.progress,
    )

    def build_job(scan: Scan, staging: Path) -> Job:
        size, margin, count = config.image_size, config.crop_margin, config.slices_per_scan
        return Job(scan, staging, size, margin, count, context.seed)

    slices: list[Prepared] = []
    skipped: list[SkippedRecord] = []
    say = now_and_then(context.progress)
    num_scans = num_lost = 0
    num_workers = min(context.num_threads, os.cpu_count() or 1)
    for outcome in iter_resumed(scans, build_job, output, num_workers):
        slices += outcome.slices
        skipped += outcome.skipped
        num_scans += 1
        num_lost += outcome.is_lost
        say(f"preprocess: {num_scans} scans prepared")
    skipped.sort(key=lambda record: record.original)
    write_records(output.path("skipped.jsonl"), skipped)
    _refuse_too_many(num_lost, num_scans, skipped, config.max_skipped_fraction)
    slices.sort(key=lambda item: item.slice_id)
    audit = find_groups(slices, config.near_duplicate_bits, config.near_duplicate_correlation)
    context.progress(
        f"{len(slices)} slices of {num_scans} scans; {audit.notes['near_duplicate_clusters']} "
        "clusters of copies"
    )
    splits, dropped = choose_slices(slices, audit, config, context.seed)
    records = [
        publish_slice(item, split, audit.group_ids[item.slice_id], output)
        for item in slices
        if (split := splits.get(item.slice_id)) is not None
    ]
    records.sort(key=lambda record: (SPLITS.index(record.split), record.slice_id))
    output.write(records)
    output.counts |= {"read": num_scans, "slices": len(slices), "skipped": num_lost}
    output.notes |= {
        "methods": describe_method(config),
        "leakage_audit": {**audit.notes, **dropped},
        "slices": count_slices(records),
        **describe_splits(records),
        "skipped_reasons": dict(Counter(_kind(row.reason) for row in skipped).most_common(20)),
        "images": {
            "dtype": "uint8",
            "value_range": "0 to 255",
            "channels": "RGB, three equal",
            "size_px": config.image_size,
            "resize": RESIZE_KERNEL,
        },
    }


def _refuse_too_many(
    num_lost: int, num_scans: int, skipped: Sequence[SkippedRecord], max_fraction: float
) -> None:
    if num_scans == 0:
        raise DataError("the source yields no scans; check preprocess.source.settings")
    if num_lost > max_fraction * num_scans or num_lost == num_scans:
        reasons = "; ".join(row.reason for row in skipped[:3])
        raise SkippedTooManyError(
            f"{num_lost} of {num_scans} scans cannot be used, more than "
            f"preprocess.max_skipped_fraction {max_fraction:g} allows. First: {reasons}"
        )


def _kind(reason: str) -> str:
    """Drop what is quoted or in brackets from a reason, so that reasons can be counted."""
    parts = reason.split("'")
    return "".join(parts[::2])[:120]


def describe_method(config: PreprocessConfig) -> str:
    """Write the sentence for the report's methods section."""
    return (
        f"Slices were cropped to the head with a margin of {config.crop_margin:.0%} of its longer "
        f"side, padded to a square and resized to {config.image_size} px ({RESIZE_KERNEL}). "
        "Copies were found before the split: identical pixels, and near-duplicates, mirrored ones "
        f"included, whose 64-bit perceptual hashes differ in at most {config.near_duplicate_bits} "
        f"bits and whose thumbnails correlate at {config.near_duplicate_correlation:g} or more. "
        "Subjects and clusters of copies were kept within one split; classes, contrasts and planes "
        "were divided among the splits in proportion."
    )


STAGE = Stage("preprocess", run, PreprocessConfig, PreprocessInputs, SliceRecord)
