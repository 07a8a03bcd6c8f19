"""Texts as reports: what a caption by a VLM states, JSON or free text."""

import re
from collections.abc import Mapping
from typing import Any

from pipeline.contracts import TumorReport
from pipeline.errors import DataError
from stages.components.tumor_report._entries import read_fields
from stages.components.tumor_report._prose import read_place, read_prose
from stages.components.tumor_report._tokens import tokenize
from stages.components.tumor_report._values import (
    MAX_VALUE_CHARS,
    clean,
    find_hits,
    is_unstated,
    read_orientation,
    read_side,
    read_value,
)
from stages.components.tumor_report.words import location_words, shorten

MAX_CHARS = 200_000  # of a caption; the longest published one has 1,200
# Control characters but white space, lone surrogates, and marks without width.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\u200b-\u200f\ufeff]")
_TAGS = re.compile(r"<(/?)(b|i|em|strong|br|p|li|ul|ol|tr|td|th|h[1-6])\s{0,9}/?>", re.IGNORECASE)
_MARKS = {"br": "\n", "p": "\n", "li": "\n", "tr": "\n", "td": "|", "th": "|"}
OF_A_TUMOR = ("location", "location_text", "side", "size", "shape", "intensity")


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


def _tidy(text: str) -> str:
    """Return a caption without the thinking before it and without what cannot be printed."""
    _, end, answer = text.rpartition("</think>")
    if not end and answer.lstrip().startswith("<think>"):
        return ""  # cut off before the answer
    answer = _TAGS.sub(lambda tag: _MARKS.get(tag[1] + tag[2].lower(), ""), answer)
    return _UNPRINTABLE.sub("", answer)


def _build(values: Mapping[str, Any]) -> TumorReport:
    """Build a report from the words of its fields; values of other types count by their words."""
    words = {key: _words(value) for key, value in values.items()}
    location, side, location_text = read_place(words.get("location", ""))
    if (more := clean(words.get("location_text", ""))) and not is_unstated(more):
        location_text = shorten(more, MAX_VALUE_CHARS)
    stated = words.get("side", "")
    if stated:
        side = "unknown" if clean(stated).lower() == "unknown" else read_side(stated) or side
    if location_text and location_text.lower() in (location, location_words(location, side)):
        location_text = None
    description: str | None = " ".join(words.get("description", "").split())
    if not description or (is_unstated(clean(description)) and len(description.split()) < 6):
        description = None
    orientation = words.get("orientation", "")
    plane = None if is_unstated(clean(orientation)) else read_orientation(orientation)
    plane = plane or read_orientation(description or "")
    return TumorReport(
        tumor=_read_presence(words.get("tumor", "")),
        location=location,
        location_text=location_text,
        side=side,
        size=read_value("size", words.get("size", "")),
        shape=read_value("shape", words.get("shape", "")),
        intensity=read_value("intensity", words.get("intensity", "")),
        orientation="unknown" if clean(orientation).lower() == "unknown" else plane,
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
    hits = {first: (value, last) for value, first, last in find_hits("presence", words)}
    if 0 not in hits:
        return read_prose(text).tumor
    value, last = hits[0]
    is_template = words[last : last + 1] in (["/"], ["or"], ["|"])  # "yes/no"
    return None if is_template else value == "yes"
