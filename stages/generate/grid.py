"""Grid of prompts: balanced over class, plane, side, place, size and contrast.

Sizes are each asked for alike, or as often as the training captions name them. The tumours of a
training set are not of each size alike: of the training captions of `mini`, 4 % of pituitary
tumours are large and 75 % small. What training has hardly shown cannot be drawn well, and images of
other sizes than the real ones score worse for that alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from pipeline.contracts import CaptionRecord, Label, Modality, Orientation, Side, TumorReport
from pipeline.errors import ConfigError, DataError
from pipeline.seeding import numpy_rng
from stages.components.tumor_report.rendering import LABEL_WORDS, describe, with_label
from stages.components.tumor_report.words import ORIENTATIONS, SIZES, location_words
from stages.generate.prompts import Prompt

Sizes = dict[Label, dict[str, int]]
Words = Literal["truth", "published"]
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Appearance:
    """What a tumour of one class may look like; a value named twice is asked for twice as often."""

    regions: tuple[str, ...]
    shapes: tuple[str, ...]
    sides: tuple[Side, ...] = ("left", "right")  # off the sagittal plane, which shows no side
    sizes: tuple[str, ...] = SIZES


# Tumours as the phantom source grows them, so that nothing is asked for that training never showed.
TRUTH_APPEARANCES: dict[Label, Appearance] = {
    "glioma": Appearance(
        ("frontal lobe", "parietal lobe", "temporal lobe", "occipital lobe", "basal ganglia"),
        ("irregular", "irregular", "lobulated", "oval", "round"),
    ),
    "meningioma": Appearance(
        ("convexity", "falx", "skull base", "posterior fossa"), ("round", "oval", "lobulated")
    ),
    "pituitary": Appearance(
        ("sellar region",), ("round", "round", "oval"), ("midline",), ("small", "medium")
    ),
}
MODALITIES: tuple[Modality, ...] = ("t1", "t1ce", "t2", "flair")
# The commonest truth of 16 phantom brains per class: an intensity goes with a contrast.
INTENSITY_OF: dict[Label, tuple[str, str, str, str]] = {
    "glioma": ("hypointense", "mixed", "hyperintense", "hyperintense"),
    "meningioma": ("hypointense", "hyperintense", "hyperintense", "isointense"),
    "pituitary": ("isointense", "hyperintense", "hyperintense", "hyperintense"),
}

# Words that the captions published for the Kaggle slices use for each class; their contrast is
# named too seldom to be asked for. Each region stands in hundreds of captions of one VLM at least.
PUBLISHED_APPEARANCES: dict[Label, Appearance] = {
    "glioma": Appearance(("frontal lobe", "temporal lobe"), ("irregular",)),
    "meningioma": Appearance(
        ("frontal lobe", "temporal lobe", "parietal lobe"), ("irregular", "round")
    ),
    "pituitary": Appearance(
        ("sellar region",), ("round", "irregular"), ("unknown",), ("small", "medium")
    ),
}
PUBLISHED_INTENSITIES = ("hyperintense", "hyperintense", "mixed")
PUBLISHED_PLACE = {"sellar region": "pituitary"}  # "pituitary" 2,600 times, "sellar region" 3
# Planes of Kaggle's tumour-free slices: 89 to 95 % axial, by Gemma, Gemini and Ovis.
PUBLISHED_PLANES_WITHOUT_TUMOR: tuple[Orientation, ...] = (
    *("axial",) * 8,
    "coronal",
    "sagittal",
)


def build_grid(
    labels: Sequence[Label],
    num_images: int,
    seed: int,
    words: Words = "truth",
    *,
    include_label: bool = False,
    sizes: Mapping[Label, Mapping[str, int]] | None = None,
) -> list[Prompt]:
    """Build prompts balanced over class, plane, side, place, size and contrast.

    Classes differ by at most one image, and so do the values of every other factor within a class
    (sides within a plane); how factors meet is drawn from the seed. Sagittal slices have no side.
    Every run of `len(labels)` prompts holds each class once. Deterministic.

    Args:
        labels: the classes, in the order in which they take turns.
        num_images: how many prompts.
        seed: the run's seed.
        words: "truth" for captions worded by `describe` (phantoms); "published" for captions worded
            by a VLM, without contrast.
        include_label: put the class before the description, as the caption stage's option of the
            same name does.
        sizes: how often each size of a class is to be asked for, instead of each alike.

    Raises:
        ConfigError: There is no class to ask for.
        DataError: `sizes` lacks a class.
    """
    if not labels:
        raise ConfigError("the configuration", ["generate.labels: expected a class, found ()"])
    reports: dict[Label, list[TumorReport]] = {}
    for index, label in enumerate(labels):
        count = num_images // len(labels) + (index < num_images % len(labels))
        rng = numpy_rng(seed, "prompts", words, label)
        build = _truth_reports if words == "truth" else _published_reports
        looks = (TRUTH_APPEARANCES if words == "truth" else PUBLISHED_APPEARANCES).get(label)
        if looks is not None and sizes is not None and count:
            looks = replace(looks, sizes=tuple(share_out(sizes, label, count)))
        reports[label] = build(label, looks, count, rng)
    prompts = []
    for index in range(num_images):
        label = labels[index % len(labels)]
        report = reports[label][index // len(labels)]
        report = with_label(report, label) if include_label else report
        prompts.append(Prompt(f"grid-{index:05d}", label, report))
    return prompts


def _truth_reports(
    label: Label, looks: Appearance | None, count: int, rng: np.random.Generator
) -> list[TumorReport]:
    planes = _spread(ORIENTATIONS, count, rng)
    modalities = _spread(MODALITIES, count, rng)
    texts = [describe(label, *pair) for pair in zip(modalities, planes, strict=True)]
    if looks is None:
        return [_without_tumor(*pair) for pair in zip(planes, texts, strict=True)]
    intensity_of = dict(zip(MODALITIES, INTENSITY_OF[label], strict=True))
    intensities = [intensity_of[modality] for modality in modalities]
    tumors = _tumors(looks, planes, intensities, rng)
    return [
        tumor.model_copy(update={"general_description": text})
        for tumor, text in zip(tumors, texts, strict=True)
    ]


def _published_reports(
    label: Label, looks: Appearance | None, count: int, rng: np.random.Generator
) -> list[TumorReport]:
    if looks is None:
        planes = _spread(PUBLISHED_PLANES_WITHOUT_TUMOR, count, rng)
        text = "{} brain MRI showing normal brain structures, with no visible tumor."
        return [_without_tumor(plane, text.format(plane.capitalize())) for plane in planes]
    planes = _spread(ORIENTATIONS, count, rng)
    intensities = _spread(PUBLISHED_INTENSITIES, count, rng)
    reports = []
    for tumor in _tumors(looks, planes, intensities, rng):
        assert tumor.location is not None
        place = PUBLISHED_PLACE.get(tumor.location)
        where = f"{place} region" if place else location_words(tumor.location, tumor.side)
        size = "medium-sized" if tumor.size == "medium" else tumor.size
        intensity = "mixed-intensity" if tumor.intensity == "mixed" else tumor.intensity
        traits = f"{size}, {tumor.shape}, {intensity}"
        text = f"Brain MRI shows a {traits} {LABEL_WORDS[label]} in the {where}."
        reports.append(
            tumor.model_copy(update={"location_text": place, "general_description": text})
        )
    return reports


def _without_tumor(plane: Orientation, text: str) -> TumorReport:
    return TumorReport(tumor=False, orientation=plane, general_description=text)


def _tumors(
    looks: Appearance,
    planes: Sequence[Orientation],
    intensities: Sequence[str],
    rng: np.random.Generator,
) -> list[TumorReport]:
    """Build one report per plane and intensity, without description."""
    count = len(planes)
    sides = {plane: iter(_spread(looks.sides, planes.count(plane), rng)) for plane in ORIENTATIONS}
    columns = zip(
        planes,
        _spread(looks.regions, count, rng),
        _spread(looks.sizes, count, rng),
        _spread(looks.shapes, count, rng),
        intensities,
        strict=True,
    )
    return [
        TumorReport(
            tumor=True,
            location=region,
            side="unknown" if plane == "sagittal" else next(sides[plane]),
            size=size,
            shape=shape,
            intensity=intensity,
            orientation=plane,
        )
        for plane, region, size, shape, intensity in columns
    ]


def _spread(values: Sequence[ValueT], count: int, rng: np.random.Generator) -> list[ValueT]:
    """Return `count` values in random order, each as often as any other or once more."""
    rest = rng.permutation(len(values))[: count % len(values)]
    indices = [*range(len(values))] * (count // len(values)) + [int(index) for index in rest]
    return [values[index] for index in rng.permutation(np.array(indices, dtype=int))]


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
    return {
        "asked": _count((prompt.label, prompt.report) for prompt in prompts),
        "trained": count_sizes(captions),
    }


def _count(reports: Iterable[tuple[Label, TumorReport | None]]) -> Sizes:
    counters: dict[Label, Counter[str]] = {}
    for label, report in reports:
        size = None if report is None else report.size
        if size is not None and size in SIZES:
            counters.setdefault(label, Counter())[size] += 1
    return {
        label: {size: counts[size] for size in SIZES if counts[size]}
        for label, counts in sorted(counters.items())
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
