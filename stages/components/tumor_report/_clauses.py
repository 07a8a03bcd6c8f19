"""Clauses of prose, and the scopes of their cues.

As in NegEx (Chapman et al. 2001) and ConText (Harkema et al. 2009), cues tell what is denied,
doubted, past or general, from where they stand to where their scope ends.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from stages.components.tumor_report._table import CUES, NOTHING, TRANSLATIONS, WORDS
from stages.components.tumor_report._tokens import Hit, Lexicon, Token, tokenize

ARTICLES = frozenset(("the", "a", "an", "any"))
HIDDEN = ";"  # stands for a word that counts for nothing

_LEXICON = Lexicon(WORDS, TRANSLATIONS, CUES)
_CONNECTORS = frozenset(("but", "while", "whereas", "however", "which", "meaning", "indicating"))
_ABBREVIATIONS = frozenset(("lt", "rt", "approx", "ca", "dr", "vs"))
_SIGNS = frozenset(("sign", "signs", "evidence", "presence", "trace", "traces", "indication"))
_OTHERS = frozenset(("other", "additional", "further", "second", "new", "mention", "only"))
_TRAITS = frozenset(
    (
        "probability",
        "likelihood",
        "risk",
        "score",
        "size",
        "location",
        "shape",
        "type",
        "grade",
        "margin",
        "margins",
        "details",
    )
)
_NEW = ((",", "a"), (",", "an"))  # begins what a denial does not cover
_NO = [["no"], ["none"], ["nein"], ["negative"], ["false"], ["absent"]]
_COPULA = frozenset(("is", "are", "was", "were", "been", "has", "have", "ist", "sind"))
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
            token._replace(word=HIDDEN) if at in hidden else token
            for at, token in enumerate(self.tokens)
        ]
        return Clause(self.text, tokens)


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


def find_denial(clause: Clause, mention: Hit) -> str | None:
    """Return "no" where a mention is denied, "other" where that says nothing of the slice."""
    if clause.words[mention.last : mention.last + 1] and clause.words[mention.last] in _TRAITS:
        return "other"  # "no tumor size is given"
    for cue in reversed(clause.find("no")):
        if cue.last <= mention.first <= cue.last + _MAX_DENIED:
            between = clause.words[cue.last : mention.first]
            is_over = any(cue.last <= end.first < mention.first for end in clause.find("end"))
            if not is_over and not any(pair in _NEW for pair in pairwise(between)):
                is_partial = _OTHERS.intersection(between) or "than" in clause.words
                return "other" if is_partial else "no"  # "no other mass", "none larger than 3 mm"
    if _is_denied_after(clause, mention.last) or _is_answered_no(clause):
        return "other" if _is_complement(clause, mention) else "no"
    return None


def _is_denied_after(clause: Clause, at: int) -> bool:
    """Tell whether words deny what stands before: "is not clearly seen", "is absent", ": no"."""
    while at < len(clause.words) and _is_filler(clause.words[at]):
        at += 1
    verb = at + 1
    while verb < len(clause.words) and clause.words[verb].endswith("ly"):
        verb += 1
    words = clause.words[at : at + 1]
    if words in (["not"], ["nicht"]):
        return any(hit.first == verb for hit in clause.find("seen_not"))
    is_last = not any(word.isalnum() for word in clause.words[at + 1 : at + 2])
    return (words in _NO and is_last) or any(hit.first == at for hit in clause.find("gone"))


def _is_answered_no(clause: Clause) -> bool:
    """Tell whether a clause ends as "Is there any mass: no"."""
    words = [word for word in clause.words if word not in ("*", "_", ".")]
    return words[-2:-1] == [":"] and words[-1:] in _NO


def _is_filler(word: str) -> bool:
    return word in _COPULA or not word.isalnum()


def _is_complement(clause: Clause, mention: Hit) -> bool:
    """Tell whether a clause is about something of a tumour: "the size of the tumor is not seen"."""
    head = mention.first - 1
    while head >= 0 and clause.words[head] in ARTICLES:
        head -= 1
    return head > 0 and clause.words[head] == "of" and clause.words[head - 1] not in _SIGNS


def is_hedged(clause: Clause) -> bool:
    """Tell whether a clause only supposes, asks or explains."""
    doubts = clause.find("doubt")
    return bool(clause.find("general")) or any(hit.value == "clause" for hit in doubts)


def keep_stated(clause: Clause) -> Clause:
    """Return a clause without what its cues cover, and without its other findings."""
    cues = (*clause.find("past"), *clause.find("doubt"))
    ends = (*clause.find("end"), *clause.find("verb"))
    over = {at for cue in cues for at in range(cue.first, len(clause.words))}
    return clause.without(over | find_denied(clause, ends) | find_others(clause))


def find_denied(clause: Clause, ends: Sequence[Hit]) -> set[int]:
    """Return the tokens that follow a "no", up to a comma or one of the ends."""
    tokens: set[int] = set()
    for cue in clause.find("no"):
        stops = [end.first for end in ends if end.first >= cue.last]
        stops += [at for at in range(cue.last, len(clause.words)) if clause.words[at] == ","]
        tokens |= {*range(cue.first, min([*stops, cue.last + _MAX_DENIED]))}
    return tokens


def find_others(clause: Clause) -> set[int]:
    """Return the tokens that speak of other findings: "with surrounding edema"."""
    tokens: set[int] = set()
    mentions = clause.find("mention")
    for head in clause.find("other"):
        openers = [hit for hit in clause.find("opener") if hit.last <= head.first]
        commas = [at for at in range(head.first) if clause.words[at] == ","]
        begin = max([0, *commas, *(hit.first for hit in openers)])
        is_aside = any(hit.last <= begin for hit in mentions)  # "a mass with edema is located in"
        verbs = [hit.first for hit in clause.find("verb") if hit.first >= head.last and is_aside]
        tokens |= {*range(begin, min([*verbs, len(clause.words)]))}
    return tokens
