"""What the generator is asked for: a balanced grid of reports, rendered like training captions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from pipeline.contracts import CaptionRecord, Label, Modality, Orientation, Side, TumorReport
from pipeline.errors import ConfigError, DataError
from pipeline.seeding import numpy_rng
from stages.components.prompt_sizes import share_out
from stages.components.tumor_report.mirroring import SWAP, mirror_words
from stages.components.tumor_report.rendering import (
    LABEL_WORDS,
    Style,
    describe,
    render,
    with_label,
)
from stages.components.tumor_report.words import ORIENTATIONS, SIZES, location_words

Words = Literal["truth", "published"]
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Prompt:
    """One image asked for; `text` is set where it is taken from a caption word for word."""

    prompt_id: str
    label: Label
    report: TumorReport
    text: str | None = None

    def render(self, style: Style, count_tokens: Callable[[str], int]) -> str:
        """Return the text for the generator, at most 77 tokens."""
        if self.text is not None:
            return self.text
        return render(self.report, style, count_tokens, label=self.label)


@dataclass(frozen=True)
class Kind:
    """What a tumour of one class may look like; a value named twice is asked for twice as often."""

    regions: tuple[str, ...]
    shapes: tuple[str, ...]
    sides: tuple[Side, ...] = ("left", "right")  # off the sagittal plane, which shows no side
    sizes: tuple[str, ...] = SIZES


# Tumours as the phantom source grows them, so that nothing is asked for that training never showed.
TRUTH_KINDS: dict[Label, Kind] = {
    "glioma": Kind(
        ("frontal lobe", "parietal lobe", "temporal lobe", "occipital lobe", "basal ganglia"),
        ("irregular", "irregular", "lobulated", "oval", "round"),
    ),
    "meningioma": Kind(
        ("convexity", "falx", "skull base", "posterior fossa"), ("round", "oval", "lobulated")
    ),
    "pituitary": Kind(
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
PUBLISHED_KINDS: dict[Label, Kind] = {
    "glioma": Kind(("frontal lobe", "temporal lobe"), ("irregular",)),
    "meningioma": Kind(("frontal lobe", "temporal lobe", "parietal lobe"), ("irregular", "round")),
    "pituitary": Kind(
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
        kind = (TRUTH_KINDS if words == "truth" else PUBLISHED_KINDS).get(label)
        if kind is not None and sizes is not None and count:
            kind = replace(kind, sizes=tuple(share_out(sizes, label, count)))
        reports[label] = build(label, kind, count, rng)
    prompts = []
    for index in range(num_images):
        label = labels[index % len(labels)]
        report = reports[label][index // len(labels)]
        report = with_label(report, label) if include_label else report
        prompts.append(Prompt(f"grid-{index:05d}", label, report))
    return prompts


def prompts_from_captions(
    captions: Iterable[CaptionRecord], labels: Sequence[Label], num_images: int, seed: int
) -> list[Prompt]:
    """Take the prompts from test captions, as the poster did: classes in turn, captions shuffled.

    A class with fewer captions than images starts over. Such images are compared with the very
    slices whose captions made them; the grid has no such tie.

    Raises:
        ConfigError: There is no class to ask for.
        DataError: A class has no test caption.
    """
    if not labels:
        raise ConfigError("the configuration", ["generate.labels: expected a class, found ()"])
    found: dict[Label, list[CaptionRecord]] = {label: [] for label in labels}
    for record in captions:
        if record.status == "ok" and record.split == "test" and record.label in found:
            found[record.label].append(record)
    for label, records in found.items():
        if not records:
            raise DataError(
                f"generate.prompts_from is 'test_captions', but no test slice of class {label!r} "
                "has a caption; add 'test' to caption.splits, or ask for the grid"
            )
        numpy_rng(seed, "test captions", label).shuffle(records)
    prompts = []
    for index in range(num_images):
        label = labels[index % len(labels)]
        turn = index // len(labels)
        record = found[label][turn % len(found[label])]
        assert record.report is not None  # status "ok" has one
        identity = f"{record.slice_id}-{turn // len(found[label])}"
        prompts.append(Prompt(identity, label, record.report, record.text))
    return prompts


def swap_side(prompt: Prompt) -> Prompt | None:
    """Ask for the other side and for nothing else; None where neither left nor right is asked for.

    Words of a place and of the description that carry the side are swapped along.
    """
    report = prompt.report
    if report.side not in SWAP or prompt.text is not None:
        return None
    worded = {
        "location_text": report.location_text,
        "general_description": report.general_description,
    }
    swapped = {name: mirror_words(text) for name, text in worded.items() if text}
    other = report.model_copy(update={"side": SWAP[report.side], **swapped})
    return replace(prompt, prompt_id=f"{prompt.prompt_id}-other-side", report=other)


def _truth_reports(
    label: Label, kind: Kind | None, count: int, rng: np.random.Generator
) -> list[TumorReport]:
    planes = _spread(ORIENTATIONS, count, rng)
    modalities = _spread(MODALITIES, count, rng)
    texts = [describe(label, *pair) for pair in zip(modalities, planes, strict=True)]
    if kind is None:
        return [_without_tumor(*pair) for pair in zip(planes, texts, strict=True)]
    intensity_of = dict(zip(MODALITIES, INTENSITY_OF[label], strict=True))
    intensities = [intensity_of[modality] for modality in modalities]
    tumors = _tumors(kind, planes, intensities, rng)
    return [
        tumor.model_copy(update={"general_description": text})
        for tumor, text in zip(tumors, texts, strict=True)
    ]


def _published_reports(
    label: Label, kind: Kind | None, count: int, rng: np.random.Generator
) -> list[TumorReport]:
    if kind is None:
        planes = _spread(PUBLISHED_PLANES_WITHOUT_TUMOR, count, rng)
        text = "{} brain MRI showing normal brain structures, with no visible tumor."
        return [_without_tumor(plane, text.format(plane.capitalize())) for plane in planes]
    planes = _spread(ORIENTATIONS, count, rng)
    intensities = _spread(PUBLISHED_INTENSITIES, count, rng)
    reports = []
    for tumor in _tumors(kind, planes, intensities, rng):
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
    kind: Kind, planes: Sequence[Orientation], intensities: Sequence[str], rng: np.random.Generator
) -> list[TumorReport]:
    """Build one report per plane and intensity, without description."""
    count = len(planes)
    sides = {plane: iter(_spread(kind.sides, planes.count(plane), rng)) for plane in ORIENTATIONS}
    columns = zip(
        planes,
        _spread(kind.regions, count, rng),
        _spread(kind.sizes, count, rng),
        _spread(kind.shapes, count, rng),
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
