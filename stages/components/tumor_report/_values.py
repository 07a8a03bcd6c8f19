"""Values in text: how written words map onto the closed lists of a report's fields.

Text is cut into tokens, and one table says what words, and runs of words, mean. A spelling is
mapped only where it means the same ("high", "bright" and "hyperintense"); other words are kept as
they are, and words that say nothing ("n/a", "small/medium/large") count as not stated.
"""

import re
from collections.abc import Sequence

from pipeline.contracts import LABELS, Label, Orientation, Side
from stages.components.tumor_report._table import NOTHING, TRANSLATIONS, WORDS
from stages.components.tumor_report._tokens import Lexicon, Token, tokenize
from stages.components.tumor_report.words import ORIENTATIONS, location_words, shorten

MAX_VALUE_CHARS = 100  # of words outside the closed lists: longest published location is 69
_UNSTATED = re.compile(
    r"(?:n/?a|none|null|nil|-+|un(?:known|clear|specified|certain|determined)|not\b.*|no\b.*"
    r"|(?:the )?brain region|yes/no|describe .*)",
    re.IGNORECASE,
)
_TEMPLATE = re.compile(r"\b(?:left ?(?:/|\||or) ?right|right ?(?:/|\||or) ?left)\b", re.IGNORECASE)
_LEXICONS = {
    kind: Lexicon({kind: WORDS[kind]}, {kind: TRANSLATIONS.get(kind, {})}) for kind in WORDS
}
_TRANSLATED = Lexicon(TRANSLATIONS)


def clean(text: str) -> str:
    """Collapse white space and strip the marks around a value: quotes, asterisks, stops, dashes.

    >>> clean(' **Frontal  lobe**. ')
    'Frontal lobe'
    """
    return " ".join(text.split()).strip(" *_`\"',;:.—–-|[]<>")


def is_unstated(text: str) -> bool:
    """Tell whether a cleaned value says nothing: empty, "n/a", "not specified", "<location>"."""
    return not text or _UNSTATED.fullmatch(text) is not None or find_key(text) is not None


def find_hits(field: str, words: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the closed-list values among tokens: (value, first token, token after the last)."""
    hits = _LEXICONS[field].find(words)
    return [(hit.value, hit.first, hit.last) for hit in hits if hit.value != NOTHING]


def find_values(field: str, text: str) -> list[str]:
    """Return the distinct closed-list values that `text` names, in order of mention.

    >>> find_values("intensity", "hyperintense with central hypointensity")
    ['hyperintense', 'hypointense']
    >>> find_values("orientation", "an extra-axial mass")
    []
    """
    hits = find_hits(field, [token.word for token in tokenize(text)])
    return list(dict.fromkeys(value for value, *_ in hits))


def find_keys(tokens: Sequence[Token]) -> dict[int, tuple[str, int]]:
    """Return the keys that stand in a text by their first token: (field, token after the last)."""
    hits = _LEXICONS["key"].find([token.word for token in tokens])
    return {hit.first: (hit.value, hit.last) for hit in hits}


def find_key(text: str) -> str | None:
    """Return the field that a key of JSON, a table or an entry stands for.

    >>> find_key("General-Description"), find_key("tumor_present"), find_key("a size")
    ('description', 'tumor', None)
    """
    tokens = tokenize(text)
    field, last = find_keys(tokens).get(0, (None, 0))
    return field if last == len(tokens) else None


def read_value(field: str, text: str) -> str | None:
    """Read a stated size, shape or intensity; None where nothing is stated.

    One closed-list value is returned as it is; of two, an intensity is "mixed" and else the first
    counts; three or more are a template that was copied ("small/medium/large") and state nothing.
    Words outside the closed list are kept, lower-case, at most `MAX_VALUE_CHARS` long.
    """
    words = clean(text)
    if is_unstated(words):
        return None
    values = find_values(field, words)
    if len(values) >= 3:
        return None
    if len(values) == 2:
        return "mixed" if field == "intensity" else values[0]
    return values[0] if values else shorten(words.lower(), MAX_VALUE_CHARS)


def read_type(text: str) -> Label | None:
    """Return the one class of tumour that `text` names; None for none or for several.

    A place is no class: "a mass in the pituitary region".

    >>> read_type("likely a pituitary macroadenoma"), read_type("glioma or meningioma")
    ('pituitary', None)
    """
    labels = [label for label in LABELS if label in find_values("type", text)]
    return labels[0] if len(labels) == 1 else None


def read_orientation(text: str) -> Orientation | None:
    """Return the one plane that `text` names; None for none or for several."""
    planes = [plane for plane in ORIENTATIONS if plane in find_values("orientation", text)]
    return planes[0] if len(planes) == 1 else None


def read_side(text: str) -> Side | None:
    """Return the side that `text` names; left and right together are bilateral.

    "unknown" is said where the viewer's side is told from the patient's.

    >>> read_side("right and left hemispheres")
    'bilateral'
    """
    values = find_values("side", text)
    if values and find_values("convention", text):
        return "unknown"
    if "bilateral" in values or {"left", "right"} <= set(values):
        return "bilateral"
    sides: tuple[Side, ...] = ("left", "right", "midline")
    return next((side for side in sides if side in values), None)


def read_location(text: str) -> tuple[str | None, Side | None, str | None]:
    """Read words that name a place: (region, side, words).

    The region is the first of `REGIONS` that is named. The words come back only where they are more
    than the region with its side, so that nothing is lost and nothing is kept twice; a translated
    place does not keep them. Of "frontal or temporal" only the words come back.

    >>> read_location("left frontal lobe")
    ('frontal lobe', 'left', None)
    >>> read_location("Right sphenoid wing")
    ('skull base', 'right', 'Right sphenoid wing')
    >>> read_location("left/right frontal lobe")
    (None, None, None)
    """
    words = clean(text)
    if is_unstated(words) or _TEMPLATE.search(words):
        return None, None, None
    locations = find_values("location", words)
    is_either = len(locations) > 1 and " or " in words.lower()
    location = locations[0] if locations and not is_either else None
    side = read_side(words)
    is_translated = location and _TRANSLATED.find([token.word for token in tokenize(words)])
    if is_translated or words.lower() == location_words(location, side):
        return location, side, None
    return location, side, shorten(words, MAX_VALUE_CHARS)
