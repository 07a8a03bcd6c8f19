"""Reading prose: what a free-text caption states about its slice, and no more.

Prose from a language model is full of sentences that state nothing about the image ("the size can
be small, medium or large", "the pituitary gland is a small gland"). Text is cut into clauses;
clauses that hedge, define or tell of another finding (cyst, oedema) count for nothing.
"""

import re

from pipeline.contracts import TumorReport
from stages.components.report_words import find_values, read_location, read_orientation

_TUMOR = r"(?:tumou?r|glioma|glioblastoma|meningioma|adenoma|neoplasm|mass)"
_CLAUSES = re.compile(
    r"(?<=[.!?])\s+|;|\n|,?\s+(?:but|while|whereas|however|which|meaning|indicating)\b"
)
_HEDGED = re.compile(
    r"\b(?:can|could|may|might|would|should|if|depending|var(?:y|ies)|without|format|such as"
    r"|(?:not|n't) \w*\s?(?:specified|mentioned|visible|clear|provided|described|given|stated)"
    r"|pea-sized|responsible|likely displays|information|important|essential|necessary|consider"
    r"|describe|is an? (?:abnormal|type)\b"
    r"|(?:is|are) (?:also )?(?:described|mentioned|provided) in)\b",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"\b(?:no|without|absence of|free of|negative for)\b(?:\W+[\w-]+){0,5}?"
    rf"\W+{_TUMOR}(?:s|es)?\b"
    rf"|\b(?:does|do|did|is|are) not\b[^.]{{0,40}}\b{_TUMOR}s?\b"
    rf"|\b{_TUMOR}s? (?:is|are) (?:not|absent)\b",
    re.IGNORECASE,
)
_NORMAL = re.compile(r"\bappears?(?: to be)? normal\b|\bnormal brain (?:mri|scan)\b", re.IGNORECASE)
_ASSERTED = re.compile(rf"\b{_TUMOR}\b", re.IGNORECASE)
_SUBJECT = re.compile(
    rf"\b{_TUMOR}\b|(?:^|\band|,)\W*its?\b|^\W*the (?:size|shape|intensity)\b", re.IGNORECASE
)
_OTHER = re.compile(
    r"(?:\bwith|\bcausing|\balong with|\band|\bthere (?:is|are)|,|^)[^,]*?"
    r"\b(?:o?edema|swelling|cyst\w*|h(?:a)?emat?o\w*|h(?:a)?emorrhag\w*|infarct\w*|fluid|effusion"
    r"|shift|vessels?)\b.*",
    re.IGNORECASE,
)
_LOCATED = re.compile(
    rf"\b(?:located|situated|{_TUMOR}|seen|found|present)\s+(?:in|within|at|near|on)\s+(?:the\s+)?"
    r"(?P<where>.+?)"
    r"(?=\s+of the brain|[,.;(]|\s+(?:with|that|where|causing)\b"
    r"|\s+and\s+(?:it|its|appears|has|is|the|there|measures|shows|extends|causes)\b|$)",
    re.IGNORECASE,
)
_INTENSITY = re.compile(
    r"\b(?:(?:hyper|hypo|iso)-?\s?intense|heterogen\w+(?! enhanc)"
    r"|mixed(?=[ -](?:signal|intensity)))\b"
    r"|(?<=intensity )(?:of the \w+ )?(?:is|was)(?: described)?(?: as)?(?: \w+ly)?"
    r" (?:high|low|bright|dark|intermediate|mixed)\b"
    r"|\b(?:has|with) an? (?:high|low|intermediate)(?= (?:signal )?intensity\b)",
    re.IGNORECASE,
)
_MEASURED = re.compile(
    r"\b(?:size|measur\w+)(?: (?:of|is|as|described|approximately|about|around|roughly))*"
    r" (?P<size>\d+(?:\.\d+)?(?: ?x ?\d+(?:\.\d+)?)* ?[cm]m)\b",
    re.IGNORECASE,
)


def read_prose(text: str) -> TumorReport:
    """Read what prose states; the description is the whole text, white space collapsed.

    Of several tumours the first counts. "Hyperintense on T2 and hypointense on T1" names no
    intensity of this slice, "located in the brain region" no place, "pituitary tumor" a kind.
    """
    clauses = [clause.strip() for clause in _CLAUSES.split(text) if clause and clause.strip()]
    tumor = next((verdict for verdict in map(_read_presence, clauses) if verdict is not None), None)
    stated = [clause for clause in clauses if not _HEDGED.search(clause)]
    planes = {plane for clause in stated if (plane := read_orientation(clause))}
    own = [_OTHER.sub("", clause) for clause in stated if _SUBJECT.search(clause)]
    own = [clause for clause in own if _SUBJECT.search(clause)] if tumor else []
    places = [read_location(match["where"]) for match in _each(_LOCATED, own)]
    location, side, words = next(
        (place for place in places if place[0] or place[1]), (None, None, None)
    )
    intensities = [match[0] for match in _each(_INTENSITY, own)]
    measured = next((match["size"] for match in _each(_MEASURED, own)), None)
    return TumorReport(
        tumor=tumor,
        location=location,
        location_text=words,
        side=side,
        size=_first("size", own) or measured,
        shape=_first("shape", own),
        intensity=_only("intensity", intensities),
        orientation=planes.pop() if len(planes) == 1 else None,
        general_description=" ".join(text.split()) or None,
    )


def _read_presence(clause: str) -> bool | None:
    """Tell whether a clause says that there is a tumour, that there is none, or neither."""
    if _NEGATED.search(clause):
        return False
    if _HEDGED.search(clause):
        return None
    if _ASSERTED.search(clause):
        return True
    return False if _NORMAL.search(clause) else None


def _each(regex: re.Pattern[str], clauses: list[str]) -> list[re.Match[str]]:
    return [match for clause in clauses for match in regex.finditer(clause)]


def _first(field: str, clauses: list[str]) -> str | None:
    """Return the value of the first clause that names exactly one; more are a template."""
    named = (find_values(field, clause) for clause in clauses)
    return next((values[0] for values in named if len(values) == 1), None)


def _only(field: str, words: list[str]) -> str | None:
    """Return the one value that all words together name."""
    found = {value for part in words for value in find_values(field, part)}
    return found.pop() if len(found) == 1 else None
