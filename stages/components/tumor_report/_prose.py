"""Prose as a report: what a free-text caption states about its slice, and no more.

Prose from a language model is full of sentences that state nothing about the image ("the size can
be small, medium or large", "the pituitary gland is a small gland"). What a cue covers, and what
belongs to another finding (cyst, oedema), counts for nothing.
"""

from collections.abc import Iterator, Sequence, Set
from itertools import pairwise

from pipeline.contracts import Side, TumorReport
from stages.components.tumor_report._clauses import (
    ARTICLES,
    HIDDEN,
    Clause,
    cut_clauses,
    find_denial,
    find_denied,
    find_others,
    is_hedged,
    keep_stated,
)
from stages.components.tumor_report._tokens import Hit
from stages.components.tumor_report._values import read_location
from stages.components.tumor_report.words import ORIENTATIONS

Place = tuple[str | None, Side | None, str | None]  # region, side, words: as read_location

_MARKS = frozenset(",.;:()")
_PREDICATE = frozenset(("of", "the", "is", "was", "described", "as", "tumor", "glioma", "mass"))
_UNITS = ("cm", "mm")
_ABOUT = frozenset(("of", "is", "as", "described", "approximately", "about", "around", "roughly"))


def read_prose(text: str) -> TumorReport:
    """Read what prose states; the description is the whole text, white space collapsed.

    Of several tumours the first counts. "Hyperintense on T2 and hypointense on T1" names no
    intensity of this slice, "located in the brain region" no place, "pituitary tumor" a kind. Of a
    tumour that is only possible the place is read, and nothing else.
    """
    clauses = list(cut_clauses(text))
    tumor, subject = _read_presence(clauses)
    kept = [keep_stated(clause) for clause in clauses if not is_hedged(clause)]
    clauses_of_tumor = [clause for clause in kept if _is_about(clause, subject)] if tumor else []
    placed = clauses_of_tumor
    if tumor is None:
        placed = [clause for clause in clauses if _is_possible(clause)]
    location, side, words = next(
        (place for clause in placed for place in _read_places(clause)), (None, None, None)
    )
    named = [_name(clause, "orientation") for clause in kept]
    planes = {plane for values in named if len(values) == 1 for plane in values}
    intensities = {value for clause in clauses_of_tumor for value in _read_intensities(clause)}
    measured = next(filter(None, map(_measure, clauses_of_tumor)), None)
    return TumorReport(
        tumor=tumor,
        location=location,
        location_text=words,
        side=side,
        size=_first("size", clauses_of_tumor) or measured,
        shape=_first("shape", clauses_of_tumor),
        intensity=intensities.pop() if len(intensities) == 1 else None,
        orientation=next((plane for plane in ORIENTATIONS if planes == {plane}), None),
        general_description=" ".join(text.split()) or None,
    )


def _read_presence(clauses: Sequence[Clause]) -> tuple[bool | None, str]:
    """Tell whether a tumour is there, and by which kind of mention; findings count where none is.

    The first clause that says so counts.
    """
    for kind in ("tumor", "finding", "abnormality"):
        for clause in clauses:
            verdict = _judge(clause, kind)
            if verdict is not None:
                return verdict, kind
    return None, "tumor"


def _judge(clause: Clause, kind: str) -> bool | None:
    """Tell what a clause says of the tumours, or findings, that it mentions."""
    mentions = [hit for hit in clause.find("mention") if hit.value == kind]
    for mention in mentions:
        denial = find_denial(clause, mention)
        if denial is not None:
            return None if denial == "other" or _is_local(clause, mention) else False
    past = any(
        cue.value == "clause" or cue.first < hit.first
        for hit in mentions
        for cue in clause.find("past")
    )
    if past or is_hedged(clause):
        return None
    doubts = clause.find("doubt")
    if any(not doubts or hit.first < doubts[0].first for hit in mentions):
        return None if kind == "abnormality" else True
    return False if kind == "tumor" and not mentions and _is_normal(clause) else None


def _is_local(clause: Clause, mention: Hit) -> bool:
    """Tell whether a denial is of one place: "no tumor on the left" leaves the right open."""
    end = clause.words.index(",", mention.last) if "," in clause.words[mention.last :] else None
    places = (*clause.find("location"), *clause.find("side"))
    return any(end is None or place.first < end for place in places)


def _is_normal(clause: Clause) -> bool:
    """Tell whether the whole slice is called normal, and not a part of it."""
    hits = clause.find("normal")
    if not (hits and clause.find("whole")) or clause.find("part") or clause.find("no"):
        return False
    return not clause.find("location")


def _is_possible(clause: Clause) -> bool:
    """Tell whether a tumour is only possible, so that its place may still be read."""
    mentions = [hit for hit in clause.find("mention") if hit.value != "abnormality"]
    is_free = not (clause.find("general") or clause.find("past") or clause.find("no"))
    return bool(mentions and clause.find("doubt") and is_free)


def _is_about(clause: Clause, kind: str) -> bool:
    """Tell whether what is left of a clause speaks of the tumour."""
    if any(hit.value in ("tumor", kind) for hit in clause.find("mention")):
        return True
    if clause.words[:1] == ["the"] and clause.words[1:2] in (["size"], ["shape"], ["intensity"]):
        return True
    before = ["and", *clause.words]
    return any(
        word in ("it", "its") and previous in ("and", ",", ";")
        for previous, word in pairwise(before)
    )


def read_place(text: str) -> Place:
    """Read a value that names a place, as `read_location`; what it denies names none.

    >>> read_place("left frontal lobe, no involvement of the right")[:2]
    ('frontal lobe', 'left')
    """
    location, side, words = read_location(text)
    clause = next(cut_clauses(text), None)
    if clause is None or words is None:
        return location, side, words
    kept = clause.without(find_denied(clause, []) | find_others(clause))
    parts = (kept.between(at, at + 1) for at, word in enumerate(kept.words) if word != HIDDEN)
    inner = read_location(" ".join(parts))
    return (inner[0], inner[1], words) if inner[0] else (location, side, words)


def _read_places(clause: Clause) -> Iterator[Place]:
    """Yield the places that a clause gives to its tumour, in order.

    Before the noun ("left frontal lobe glioma"), or after it ("located in the left frontal lobe").
    Where something extends to is a place for an adenoma only ("suprasellar extension").
    """
    starts = {hit.last for kind in ("mention", "seen") for hit in clause.find(kind)}
    starts |= {at + 1 for at, word in enumerate(clause.words) if word in _UNITS}
    ats = {hit.first: hit.last for hit in clause.find("at")}
    mentions = {hit.first for hit in clause.find("mention")}
    stops = {
        at
        for kind in ("at", "seen", "verb", "opener", "no", "end", "past", "doubt", "mention")
        for hit in clause.find(kind)
        for at in range(hit.first, hit.last)
    }
    for index in range(len(clause.words) + 1):
        is_extension = clause.words[index : index + 1] == ["extension"]
        if index in mentions or is_extension:
            location, side, _ = read_location(_noun_phrase(clause, index, stops))
            if (location or side) and (location == "sellar region" or not is_extension):
                yield location, side, None
        if index in starts and index in ats:
            place = _read_place(clause, ats[index])
            if place[0] or place[1]:
                yield place


def _noun_phrase(clause: Clause, end: int, stops: Set[int]) -> str:
    """Return the words that describe the noun at a token, back to an article, verb or mark."""
    begin = end
    while begin and begin - 1 not in stops:
        word = clause.words[begin - 1]
        if word in ARTICLES or not word.isalnum():
            break
        begin -= 1
    return clause.between(begin, end)


def _read_place(clause: Clause, first: int) -> Place:
    """Read the place that begins at a token; "left hemisphere, in the frontal lobe" is one."""
    stops = {hit.first for kind in ("verb", "mention") for hit in clause.find(kind)}
    last = first
    while last < len(clause.words) and last not in stops and clause.words[last] not in _MARKS:
        last += 1
    location, side, words = read_location(clause.between(first, last))
    if clause.words[last : last + 1] == ["("] and ")" in clause.words[last:]:
        last = clause.words.index(")", last) + 1
    if clause.words[last : last + 1] == [","]:
        last += 1
    more = next((hit.last for hit in clause.find("at") if hit.first == last), None)
    if more and (side or location) and location in (None, "cerebral hemisphere"):
        inner = _read_place(clause, more)
        if inner[0]:
            location, side, words = inner[0], side or inner[1], None
    if side and clause.find("convention"):
        return location, "unknown", None
    return location, side, words


def _read_intensities(clause: Clause) -> Iterator[str]:
    """Yield intensities: "hyperintense", "mixed signal", "the intensity is low"; not "low risk"."""
    for _, value, first, last in clause.find("intensity"):
        word, after, before = clause.words[first], clause.words[last:], clause.words[:first]
        if word.startswith(("heterogen", "inhomogen")):
            is_meant = not (after and after[0].startswith("enhanc"))
        elif any("intens" in part for part in clause.words[first:last]):
            is_meant = True
        elif after[:1] == ["intensity"] or after[:2] == ["signal", "intensity"]:
            is_meant = value == "mixed" or before[-2:-1] in (["has"], ["with"])
        else:
            is_meant = word != "iso" and _is_predicate(before)
        if is_meant:
            yield value


def _is_predicate(before: Sequence[str]) -> bool:
    """Tell whether words end as "the intensity (of the tumor) is described as"."""
    for word in reversed(before[-9:]):
        if word == "intensity":
            return True
        if word not in _PREDICATE and not word.endswith("ly"):
            return False
    return False


def _measure(clause: Clause) -> str | None:
    """Return a size in figures as it is written, "1.5 x 2 cm"; its clause says that it is one."""
    for at, word in enumerate(clause.words):
        if word == "size" or word.startswith("measur"):
            first = at + 1
            while clause.words[first : first + 1] and clause.words[first] in _ABOUT:
                first += 1
            last = first
            while clause.words[last : last + 1] and (
                clause.words[last].isdigit() or clause.words[last] in (".", "x", "×", *_UNITS)
            ):
                last += 1
            while last > first and clause.words[last - 1] not in _UNITS:
                last -= 1
            if last > first + 1:
                return clause.between(first, last)
    return None


def _name(clause: Clause, field: str) -> set[str]:
    """Return the values of a field that a clause names."""
    return {hit.value for hit in clause.find(field)}


def _first(field: str, clauses: Sequence[Clause]) -> str | None:
    """Return the value of the first clause that names exactly one; more are a template."""
    named = (_name(clause, field) for clause in clauses)
    return next((values.pop() for values in named if len(values) == 1), None)
