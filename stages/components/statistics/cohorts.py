"""Cohorts: records of images, chosen so that samples are disjoint and of equal size.

An image's *group* is what intervals draw whole. Of a real slice it is the subject, or the cluster
of near-duplicates. A generated image has no subject. Its unit is the prompt with its seed, since
another run of the same adapter would ask for the same grid with other seeds; that prompts of equal
words come several times in the grid, each as often by design, makes such intervals a little too
wide, never too narrow. Where prompts are captions of real slices (`generate.prompts_from`), those
of one subject resemble each other and each may come with several seeds, so the unit is that
subject. A counterfactual image goes with its original. No interval over images says how much
another training of the same arm would differ: of that there is one draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.contracts import LABELS, UNKNOWN, Artifact, Label, SliceRecord, Split, SyntheticRecord
from pipeline.errors import SampleSizeError, SplitLeakError
from pipeline.seeding import derive_seed

SeedParts = tuple[int | str, ...]


@dataclass(frozen=True)
class Item:
    """An image to be scored; images of one group are drawn together."""

    name: str
    path: Path
    label: Label
    group: str  # what intervals draw whole
    orientation: str = UNKNOWN
    prompt: str | None = None  # None: a real slice
    modality: str = UNKNOWN


def list_real(preprocess: Artifact[SliceRecord], split: Split) -> list[Item]:
    """List the slices of a split."""
    return [
        Item(
            r.slice_id,
            preprocess.path(r.image_path),
            r.label,
            r.group_id,
            r.orientation,
            modality=r.modality,
        )
        for r in preprocess.records()
        if r.split == split
    ]


def find_units(
    generated: Artifact[SyntheticRecord], preprocess: Artifact[SliceRecord]
) -> dict[str, str]:
    """Return the group of each generated image, by the image's name; see the head of this file."""
    subjects = {record.slice_id: record.group_id for record in preprocess.records()}
    return {
        r.image_id: subjects[r.prompt_slice_id]
        if r.prompt_slice_id is not None
        else r.counterfactual_of or r.image_id
        for r in generated.records()
    }


def list_synthetic(
    generated: Artifact[SyntheticRecord], preprocess: Artifact[SliceRecord]
) -> list[Item]:
    """List an arm's images but counterfactual ones."""
    units = find_units(generated, preprocess)
    return [
        Item(
            r.image_id,
            generated.path(r.image_path),
            r.label,
            units[r.image_id],
            r.requested.orientation or UNKNOWN,
            r.prompt,
        )
        for r in generated.records()
        if r.counterfactual_of is None
    ]


def require_disjoint(test: Sequence[Item], train: Sequence[Item]) -> None:
    """Refuse a floor between samples that share a group.

    Raises:
        SplitLeakError: A group stands in both splits.
    """
    shared = {item.group for item in test} & {item.group for item in train}
    if shared:
        group = min(shared)
        in_train = sum(item.group == group for item in train)
        in_test = sum(item.group == group for item in test)
        raise SplitLeakError(
            f"group {group!r} is in both train ({in_train} slices) and test ({in_test} slices), "
            f"one of {len(shared)} such groups. Split by group_id, then rerun preprocess."
        )


def count_per_class(sets: Mapping[str, Sequence[Item]], max_images: int) -> dict[Label, int]:
    """Return how many images of each class every set gives: what the smallest has, capped.

    The cap shares `max_images` equally among the classes that all sets have.

    Raises:
        SampleSizeError: The sets have fewer than two images of shared classes.
    """
    least = {
        label: min(sum(item.label == label for item in items) for items in sets.values())
        for label in LABELS
    }
    shared = [label for label in LABELS if least[label] > 0]
    counts = {label: min(least[label], max(1, max_images // len(shared))) for label in shared}
    if sum(counts.values()) < 2:
        sizes = ", ".join(f"{name} {len(items)}" for name, items in sets.items())
        raise SampleSizeError(
            f"evaluate needs at least 2 images of classes that every set has, found "
            f"{sum(counts.values())} (images: {sizes}). Raise generate.num_images, let "
            "generate.labels name the classes of the real slices, or add real slices."
        )
    return counts


def choose(items: Sequence[Item], counts: Mapping[Label, int], seed_parts: SeedParts) -> list[Item]:
    """Take the first `counts` images of each class in an order that names and seed decide.

    Sets that share names choose the same of them, as far as they have them.
    """
    chosen: list[Item] = []
    for label, count in counts.items():
        candidates = (item for item in items if item.label == label)
        ranked = sorted(
            candidates, key=lambda i: (derive_seed(*seed_parts, "choose", i.name), i.name)
        )
        chosen += ranked[:count]
    return chosen
