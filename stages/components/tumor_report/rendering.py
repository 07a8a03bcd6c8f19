"""Reports as text: structured captions and sentences, within a budget of tokens."""

import re
from collections.abc import Callable
from typing import Literal

from pipeline.contracts import Label, Modality, Orientation, Side, TumorReport
from pipeline.errors import DataError
from stages.components.tumor_report.words import location_words

Style = Literal["structured", "sentence", "label_only"]
LABEL_WORDS: dict[Label, str] = {
    "notumor": "no tumor",
    "glioma": "glioma",
    "meningioma": "meningioma",
    "pituitary": "pituitary tumor",
}
MODALITY_WORDS: dict[Modality, str] = {
    "t1": "T1-weighted",
    "t1ce": "T1-weighted contrast-enhanced",
    "t2": "T2-weighted",
    "flair": "FLAIR",
    "unknown": "",
}


def render(
    report: TumorReport,
    style: Style,
    count_tokens: Callable[[str], int],
    max_tokens: int = 77,
    *,
    label: Label | None = None,
) -> str:
    """Write a report as caption text of at most `max_tokens` tokens.

    Fields survive, the description is cut between words. A place in free words gives way to its
    region and side before anything fails. Unknown sides and orientations are not written, and so
    read back as not stated.

    Args:
        report: what to say; what is None is left out.
        style: "structured" (the poster's), "sentence", or "label_only" (the class and no more).
        count_tokens: tokens of a text, with the marks for begin and end.
        max_tokens: the text encoder's context.
        label: the class; only "label_only" uses it.

    Raises:
        DataError: The fields alone exceed `max_tokens`, or "label_only" was given no label.
    """
    if style == "label_only":
        if label is None:
            raise DataError("style 'label_only' needs the label of the slice, found None")
        fields, description = f"brain MRI, {LABEL_WORDS[label]}", ""
    else:
        word = _structured if style == "structured" else _sentence
        fields = word(report)
        if count_tokens(fields) > max_tokens and report.location:
            fields = word(report.model_copy(update={"location_text": None}))
        description = " ".join((report.general_description or "").split())
    num_tokens = count_tokens(fields)
    if num_tokens > max_tokens:
        raise DataError(
            f"the fields alone take {num_tokens} of {max_tokens} tokens: {fields!r}; "
            "shorten the location's words"
        )
    joint = "; general description: " if style == "structured" else " "
    words = description.split()
    fits, over = 0, len(words) + 1
    while over - fits > 1:
        middle = (fits + over) // 2
        if count_tokens(_join(fields, joint, words[:middle])) <= max_tokens:
            fits = middle
        else:
            over = middle
    kept = words[:fits]
    if kept and fits < len(words):
        kept[-1] = kept[-1].rstrip(",;:-")
    return _join(fields, joint, kept)


def name_modality(text: str) -> Modality:
    """Name the contrast that a description states, in the words of `MODALITY_WORDS`.

    >>> name_modality("T1-weighted contrast-enhanced axial brain MRI"), name_modality("a brain")
    ('t1ce', 'unknown')
    """
    stated = [name for name, words in MODALITY_WORDS.items() if words and words in text]
    return max(stated, key=lambda name: len(MODALITY_WORDS[name]), default="unknown")


def describe(label: Label, modality: Modality, orientation: Orientation) -> str:
    """Word the general description of a slice whose class, contrast and plane are known.

    Ground truth and prompts both use it, so that they name a class in the same words.

    >>> describe("glioma", "t1ce", "axial")
    'T1-weighted contrast-enhanced axial brain MRI with a glioma'
    """
    plane = orientation if orientation != "unknown" else ""
    head = " ".join(part for part in (MODALITY_WORDS[modality], plane, "brain MRI") if part)
    return head + (" without a tumor" if label == "notumor" else f" with a {LABEL_WORDS[label]}")


def with_label(report: TumorReport, label: Label) -> TumorReport:
    """Put the class before the description: "glioma. Brain MRI shows ..."."""
    words = f"{LABEL_WORDS[label]}. {report.general_description or ''}".strip()
    return report.model_copy(update={"general_description": words})


def _join(fields: str, joint: str, words: list[str]) -> str:
    if not words:
        return fields
    if not fields:
        joint = joint.lstrip("; ")
    return fields + joint + " ".join(words)


def _structured(report: TumorReport) -> str:
    known = report.orientation if report.orientation != "unknown" else None
    pairs = (
        ("tumor", None if report.tumor is None else "yes" if report.tumor else "no"),
        ("location", _place(report)),
        ("size", report.size),
        ("shape", report.shape),
        ("intensity", report.intensity),
        ("orientation", known),
    )
    return "; ".join(f"{key}: {value.replace(';', ',')}" for key, value in pairs if value)


def _place(report: TumorReport) -> str:
    """Word the place: its own words where there are any, and always the side."""
    words = report.location_text or location_words(report.location, report.side)
    if report.side in (None, "unknown", _side_in(words)):
        return words
    return f"{report.side} {words}"


def _side_in(words: str) -> Side | None:
    """Return the side that a place's words name already; left and right together are bilateral."""
    sides = set(re.findall(r"left|right|midline|bilateral|both", words.lower()))
    if sides & {"bilateral", "both"} or {"left", "right"} <= sides:
        return "bilateral"
    order: tuple[Side, ...] = ("left", "right", "midline")
    return next((side for side in order if side in sides), None)


def _sentence(report: TumorReport) -> str:
    plane = report.orientation if report.orientation not in (None, "unknown") else None
    head = f"{plane.capitalize()} brain MRI" if plane else "Brain MRI"
    if report.tumor is False:
        return f"{head} showing no tumor."
    # "mixed tumor" would be a kind of tumor, to a reader and to the parser.
    intensity = "mixed-intensity" if report.intensity == "mixed" else report.intensity
    traits = ", ".join(value for value in (report.size, report.shape, intensity) if value)
    where = _place(report)
    if report.tumor is None and not (traits or where):
        return f"{head}."
    thing = "tumor" if report.tumor else "finding"  # presence was not stated
    noun = f"{traits} {thing}" if traits else thing
    article = "an" if noun[0] in "aeiou" else "a"
    return f"{head} showing {article} {noun}" + (f" located in the {where}." if where else ".")
