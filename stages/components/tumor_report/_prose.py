"""Reading prose: what a free-text caption states about its slice, and no more.

Prose from a language model is full of sentences that state nothing about the image ("the size can
be small, medium or large", "the pituitary gland is a small gland"). Text is cut into clauses. Cues
with scopes, as in NegEx (Chapman et al. 2001) and ConText (Harkema et al. 2009), tell what is
denied, doubted, past or general; what they cover, and what belongs to another finding (cyst,
oedema), counts for nothing.
"""

from collections.abc import Iterator, Sequence, Set
from itertools import pairwise

from pipeline.contracts import Side, TumorReport
from stages.components.tumor_report._table import CUES, NOTHING, TRANSLATIONS, WORDS
from stages.components.tumor_report._tokens import Hit, Lexicon, Token, tokenize
from stages.components.tumor_report.words import ORIENTATIONS, read_location

Place = tuple[str | None, Side | None, str | None]  # region, side, words: as read_location

_LEXICON = Lexicon(WORDS, TRANSLATIONS, CUES)
_CONNECTORS = frozenset(("but", "while", "whereas", "however", "which", "meaning", "indicating"))
_ABBREVIATIONS = frozenset(("lt", "rt", "approx", "ca", "dr", "vs"))
_SIGNS = frozenset(("sign", "signs", "evidence", "presence", "trace", "traces", "indication"))
_ARTICLES = frozenset(("the", "a", "an", "any"))
_OTHERS = frozenset(("other", "additional", "further", "second", "new", "mention", "only"))
_NEW = ((",", "a"), (",", "an"))  # begins what a denial does not cover
_COPULA = frozenset(("is", "are", "was", "were", "been", "has", "have", "ist", "sind"))
_MARKS = frozenset(",.;:()")
_PREDICATE = frozenset(("of", "the", "is", "was", "described", "as", "tumor", "glioma", "mass"))
_ABOUT = frozenset(("of", "is", "as", "described", "approximately", "about", "around", "roughly"))
_HIDDEN = ";"  # stands for a word that counts for nothing
_MAX_WORDS = 120  # of a clause: more is no sentence, and its cost grows with the square
_MAX_DENIED = 8  # words from a cue to what it denies


class Clause:
    """A part of a sentence: its words, and what the table knows of them.

    Args:
        text: the whole text.
        tokens: the words of the clause, and where they stand in `text`.
    """

    def __init__(self, text: str, tokens: Sequence[Token]) -> None:
        self.text = text
        self.tokens = tokens
        self.words = [token.word for token in tokens]
        self._hits: dict[str, list[Hit]] = {}
        for hit in _LEXICON.find(self.words):
            if hit.value != NOTHING:
                self._hits.setdefault(hit.kind, []).append(hit)

    def find(self, kind: str) -> list[Hit]:
        """Return what the clause says of a kind, in order."""
        return self._hits.get(kind, [])

    def between(self, first: int, last: int) -> str:
        """Return the text of the tokens from `first` up to, and without, `last`."""
        if last <= first:
            return ""
        return self.text[self.tokens[first].start : self.tokens[last - 1].end]

    def without(self, hidden: set[int]) -> "Clause":
        """Return the clause with some of its tokens hidden."""
        if not hidden:
            return self
        tokens = [
            token._replace(word=_HIDDEN) if at in hidden else token
            for at, token in enumerate(self.tokens)
        ]
        return Clause(self.text, tokens)


def read_prose(text: str) -> TumorReport:
    """Read what prose states; the description is the whole text, white space collapsed.

    Of several tumours the first counts. "Hyperintense on T2 and hypointense on T1" names no
    intensity of this slice, "located in the brain region" no place, "pituitary tumor" a kind. Of a
    tumour that is only possible the place is read, and nothing else.
    """
    clauses = list(cut_clauses(text))
    tumor, subject = _read_presence(clauses)
    kept = [_keep(clause) for clause in clauses if not _is_hedged(clause)]
    own = [clause for clause in kept if _is_about(clause, subject)] if tumor else []
    placed = own
    if tumor is None:
        placed = [clause for clause in clauses if _is_possible(clause)]
    location, side, words = next(
        (place for clause in placed for place in _read_places(clause)), (None, None, None)
    )
    named = [_name(clause, "orientation") for clause in kept]
    planes = {plane for values in named if len(values) == 1 for plane in values}
    intensities = {value for clause in own for value in _read_intensities(clause)}
    measured = next(filter(None, map(_measure, own)), None)
    return TumorReport(
        tumor=tumor,
        location=location,
        location_text=words,
        side=side,
        size=_first("size", own) or measured,
        shape=_first("shape", own),
        intensity=intensities.pop() if len(intensities) == 1 else None,
        orientation=next((plane for plane in ORIENTATIONS if planes == {plane}), None),
        general_description=" ".join(text.split()) or None,
    )


def cut_clauses(text: str) -> Iterator[Clause]:
    """Cut a text at ends of sentences, semicolons, line breaks and words like "but", "which"."""
    part: list[Token] = []
    last = ""
    for token in tokenize(text):
        word, start, end = token
        is_stop = word in (".", "!", "?") and last not in _ABBREVIATIONS
        ends = is_stop and not text[end : end + 1].strip()
        joins = word in _CONNECTORS and start > 0 and text[start - 1].isspace()
        if word == "?" or not (word in (";", "\n") or ends or (joins and part)):
            part.append(token)
        if part and (word in (";", "\n") or ends or joins or len(part) == _MAX_WORDS):
            yield Clause(text, part)
            part = []
        last = word
    if part:
        yield Clause(text, part)


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
        denial = _find_denial(clause, mention)
        if denial is not None:
            # "No tumor on the left" leaves the right open, "no other tumor" the first.
            is_local = clause.find("location") or clause.find("side")
            return None if is_local or denial == "other" else False
    past = any(cue.first < hit.first for hit in mentions for cue in clause.find("past"))
    if past or _is_hedged(clause):
        return None
    doubts = clause.find("doubt")
    if any(not doubts or hit.first < doubts[0].first for hit in mentions):
        return None if kind == "abnormality" else True
    return False if kind == "tumor" and not mentions and _is_normal(clause) else None


def _find_denial(clause: Clause, mention: Hit) -> str | None:
    """Return "no" where a mention is denied, "other" where that says nothing of the slice."""
    ends = clause.find("end")
    for cue in reversed(clause.find("no")):
        if cue.last <= mention.first <= cue.last + _MAX_DENIED:
            between = clause.words[cue.last : mention.first]
            is_over = any(cue.last <= end.first < mention.first for end in ends)
            if not is_over and not any(pair in _NEW for pair in pairwise(between)):
                return "other" if _OTHERS.intersection(between) else "no"
    for cue in clause.find("denied"):
        if cue.first >= mention.last and _COPULA.issuperset(clause.words[mention.last : cue.first]):
            return "other" if _is_complement(clause, mention) else "no"
    return None


def _is_complement(clause: Clause, mention: Hit) -> bool:
    """Tell whether a clause is about something of a tumour: "the size of the tumor is not seen"."""
    head = mention.first - 1
    while head >= 0 and clause.words[head] in _ARTICLES:
        head -= 1
    return head > 0 and clause.words[head] == "of" and clause.words[head - 1] not in _SIGNS


def _is_hedged(clause: Clause) -> bool:
    doubts = clause.find("doubt")
    return bool(clause.find("general")) or any(hit.value == "clause" for hit in doubts)


def _is_normal(clause: Clause) -> bool:
    """Tell whether the whole slice is called normal, and not a part of it."""
    said = clause.find("normal")
    if not (said and clause.find("whole")) or clause.find("part") or clause.find("no"):
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


def _keep(clause: Clause) -> Clause:
    """Return a clause without what its cues cover, and without its other findings."""
    hidden: set[int] = set()
    for cue in clause.find("no"):
        ends = [end.first for end in clause.find("end") if end.first >= cue.last]
        commas = [at for at in range(cue.last, len(clause.words)) if clause.words[at] == ","]
        hidden |= {*range(cue.first, min([*ends, *commas, cue.last + _MAX_DENIED]))}
    for cue in (*clause.find("past"), *clause.find("doubt")):
        hidden |= {*range(cue.first, len(clause.words))}
    mentions = clause.find("mention")
    for head in clause.find("other"):
        openers = [hit for hit in clause.find("opener") if hit.last <= head.first]
        commas = [at for at in range(head.first) if clause.words[at] == ","]
        begin = max([0, *commas, *(hit.first for hit in openers)])
        is_aside = any(hit.last <= begin for hit in mentions)  # "a mass with edema is located in"
        verbs = [hit.first for hit in clause.find("verb") if hit.first >= head.last and is_aside]
        hidden |= {*range(begin, min([*verbs, len(clause.words)]))}
    return clause.without(hidden)


def _read_places(clause: Clause) -> Iterator[Place]:
    """Yield the places that a clause gives to its tumour, in order.

    Before the noun ("left frontal lobe glioma"), or after it ("located in the left frontal lobe").
    Where something extends to is a place for an adenoma only ("suprasellar extension").
    """
    starts = {hit.last for kind in ("mention", "seen") for hit in clause.find(kind)}
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
        if word in _ARTICLES or not word.isalnum():
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
        if word not in _PREDICATE and not word.endswith("ly") and word != before[-1]:
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
                clause.words[last].isdigit() or clause.words[last] in (".", "x")
            ):
                last += 1
            if last > first and clause.words[last : last + 1] in (["cm"], ["mm"]):
                return clause.between(first, last + 1)
    return None


def _name(clause: Clause, field: str) -> set[str]:
    """Return the values of a field that a clause names."""
    return {hit.value for hit in clause.find(field)}


def _first(field: str, clauses: Sequence[Clause]) -> str | None:
    """Return the value of the first clause that names exactly one; more are a template."""
    named = (_name(clause, field) for clause in clauses)
    return next((values.pop() for values in named if len(values) == 1), None)
