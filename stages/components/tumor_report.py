"""The caption schema: JSON schema for a VLM, rendering to caption text, and parser for both.

`render` writes training captions and prompts alike, so that a generator is asked in the words it
was trained on. Its structured form is the poster's, `tumor: yes; location: left frontal lobe; ...`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pipeline.contracts import Label, Modality, Orientation, TumorReport
from pipeline.errors import DataError
from stages.components.report_entries import read_fields
from stages.components.report_prose import read_prose
from stages.components.report_tokens import tokenize
from stages.components.report_words import (
    INTENSITIES,
    MAX_VALUE_CHARS,
    ORIENTATIONS,
    REGIONS,
    SHAPES,
    SIDES,
    SIZES,
    clean,
    find_hits,
    is_unstated,
    location_words,
    read_location,
    read_orientation,
    read_side,
    read_value,
    shorten,
)

__all__ = [
    "INTENSITIES",
    "LABEL_WORDS",
    "ORIENTATIONS",
    "REGIONS",
    "SHAPES",
    "SIDES",
    "SIZES",
    "Style",
    "describe",
    "json_schema",
    "location_words",
    "parse",
    "render",
    "with_label",
]

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
MAX_DESCRIPTION_CHARS = 300  # asked of a VLM; about 60 tokens, so that a runaway answer ends
MAX_CHARS = 200_000  # of a caption; the longest published one has 1,200
# Control characters but white space, lone surrogates, and marks without width.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\u200b-\u200f\ufeff]")
OF_A_TUMOR = ("location", "location_text", "side", "size", "shape", "intensity")


def json_schema() -> dict[str, Any]:
    """Return the JSON schema that a VLM is constrained to: closed lists and bounded strings."""

    def choice(values: tuple[str, ...]) -> dict[str, Any]:
        return {"enum": [*values, None]}

    properties: dict[str, Any] = {
        "tumor": {"type": "boolean"},
        "location": choice(REGIONS),
        "side": choice(SIDES),
        "size": choice(SIZES),
        "shape": choice(SHAPES),
        "intensity": choice(INTENSITIES),
        "orientation": choice(ORIENTATIONS),
        "general_description": {"type": "string", "maxLength": MAX_DESCRIPTION_CHARS},
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def parse(text: str) -> TumorReport:
    """Read a caption: JSON, the poster's `key: value; ...` in its published spellings, or prose.

    Only what is stated is read. The orientation may be stated by the description ("Axial brain MRI
    showing ..."), as in every published caption without a tumour.

    Args:
        text: what a captioner wrote; unknown JSON keys are ignored.

    Raises:
        DataError: The text is empty, or states nothing that the schema asks for.

    Example:
        >>> report = parse("Tumor: yes; location: Left temporal lobe; intensity: bright")
        >>> report.location, report.side, report.intensity
        ('temporal lobe', 'left', 'hyperintense')
    """
    if len(text) > MAX_CHARS:
        raise DataError(f"the caption has {len(text)} characters: expected at most {MAX_CHARS}")
    text = _tidy(text)
    if not text.strip():
        raise DataError("the caption is empty: expected JSON, 'tumor: yes; ...' or prose")
    values = read_fields(text)
    report = _build(values) if values is not None else read_prose(text)
    if report.tumor is False:
        report = report.model_copy(update=dict.fromkeys(OF_A_TUMOR))
    stated = report.model_dump(exclude={"general_description"}, exclude_none=True)
    if not stated:
        quoted = shorten(" ".join(text.split()), 80)
        raise DataError(
            f"the caption states neither a tumor nor a place, size or orientation: {quoted!r}"
        )
    return report


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
    if report.side in (None, "unknown", read_side(words)):
        return words
    return f"{report.side} {words}"


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


def _tidy(text: str) -> str:
    """Return a caption without the thinking before it and without what cannot be printed."""
    _, end, answer = text.rpartition("</think>")
    if not end and answer.lstrip().startswith("<think>"):
        return ""  # cut off before the answer
    return _UNPRINTABLE.sub("", answer)


def _build(values: Mapping[str, Any]) -> TumorReport:
    """Build a report from the words of its fields; values of other types count by their words."""
    words = {key: _words(value) for key, value in values.items()}
    location, side, location_text = read_location(words.get("location", ""))
    if (more := clean(words.get("location_text", ""))) and not is_unstated(more):
        location_text = shorten(more, MAX_VALUE_CHARS)
    stated = words.get("side", "")
    if stated:
        side = "unknown" if clean(stated).lower() == "unknown" else read_side(stated) or side
    if location_text and location_text.lower() in (location, location_words(location, side)):
        location_text = None
    description: str | None = " ".join(words.get("description", "").split())
    if not description or is_unstated(clean(description)):
        description = None
    said = words.get("orientation", "")
    orientation = read_orientation(said) or read_orientation(description or "")
    return TumorReport(
        tumor=_read_presence(words.get("tumor", "")),
        location=location,
        location_text=location_text,
        side=side,
        size=read_value("size", words.get("size", "")),
        shape=read_value("shape", words.get("shape", "")),
        intensity=read_value("intensity", words.get("intensity", "")),
        orientation="unknown" if clean(said).lower() == "unknown" else orientation,
        general_description=description,
    )


def _words(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value)
    return str(value)


def _read_presence(text: str) -> bool | None:
    words = [token.word for token in tokenize(clean(text))]
    found = {first: (value, last) for value, first, last in find_hits("presence", words)}
    if 0 not in found:
        return read_prose(text).tumor
    value, last = found[0]
    is_template = words[last : last + 1] in (["/"], ["or"])  # "yes/no"
    return None if is_template else value == "yes"
