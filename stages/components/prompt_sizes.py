"""The sizes that a grid of prompts asks for, as often as the training captions name them.

A balanced grid asks for each size alike. The tumours of a training set are not of each size alike:
of the training captions of `mini`, 4 % of pituitary tumours are large and 75 % small. What training
has hardly shown cannot be drawn well, and images of other sizes than the real ones score worse for
that alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pipeline.contracts import CaptionRecord, Label, TumorReport
from pipeline.errors import DataError
from stages.components.tumor_report.words import SIZES

if TYPE_CHECKING:
    from stages.components.prompts import Prompt

Sizes = dict[Label, dict[str, int]]


def count_sizes(captions: Iterable[CaptionRecord]) -> Sizes:
    """Count the sizes that training captions of each class name, in the order of `SIZES`."""
    return _count(
        (record.label, record.report)
        for record in captions
        if record.split == "train" and record.status == "ok"
    )


def describe_sizes(
    prompts: Iterable[Prompt], captions: Iterable[CaptionRecord]
) -> dict[str, Sizes]:
    """Count the sizes that are asked for, and those of the training captions, as JSON values."""
    asked = _count((prompt.label, prompt.report) for prompt in prompts)
    return {"asked": asked, "trained": count_sizes(captions)}


def _count(reports: Iterable[tuple[Label, TumorReport | None]]) -> Sizes:
    found: dict[Label, Counter[str]] = {}
    for label, report in reports:
        size = None if report is None else report.size
        if size is not None and size in SIZES:
            found.setdefault(label, Counter())[size] += 1
    return {
        label: {size: counts[size] for size in SIZES if counts[size]}
        for label, counts in sorted(found.items())
    }


def share_out(sizes: Mapping[Label, Mapping[str, int]], label: Label, total: int) -> list[str]:
    """Return `total` sizes of a class in proportion to its captions, by the largest remainders.

    Raises:
        DataError: No training caption of the class names a size.

    Example:
        >>> share_out({"glioma": {"small": 32, "medium": 69, "large": 19}}, "glioma", 6)
        ['small', 'small', 'medium', 'medium', 'medium', 'large']
    """
    counts = sizes.get(label)
    if not counts:
        raise DataError(
            f"generate.grid_sizes is 'trained', but no training caption of class {label!r} names a "
            "size; set generate.grid_sizes: balanced, or take captions that name sizes"
        )
    known = sum(counts.values())
    whole = {size: total * count // known for size, count in counts.items()}
    by_remainder = sorted(counts, key=lambda size: -(total * counts[size] % known))
    for size in by_remainder[: total - sum(whole.values())]:
        whole[size] += 1
    return [size for size, count in whole.items() for _ in range(count)]
