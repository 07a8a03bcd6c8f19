"""The closed lists of a tumour report, and how published spellings map onto them.

A spelling is mapped only where it means the same ("high", "bright" and "hyperintense"); other words
are kept as they are, and words that say nothing ("n/a", "small/medium/large") count as not stated.
"""

import re

from pipeline.contracts import LABELS, Label, Orientation, Side

REGIONS: tuple[str, ...] = (
    "frontal lobe",
    "parietal lobe",
    "temporal lobe",
    "occipital lobe",
    "cerebellum",
    "brainstem",
    "basal ganglia",
    "thalamus",
    "ventricle",
    "sellar region",
    "cerebellopontine angle",
    "posterior fossa",
    "skull base",
    "falx",
    "convexity",
    "cerebral hemisphere",
)
SIDES: tuple[Side, ...] = ("left", "right", "midline", "bilateral", "unknown")
SIZES: tuple[str, ...] = ("small", "medium", "large")
SHAPES: tuple[str, ...] = ("round", "oval", "irregular", "lobulated")
INTENSITIES: tuple[str, ...] = ("hyperintense", "hypointense", "isointense", "mixed")
ORIENTATIONS: tuple[Orientation, ...] = ("axial", "coronal", "sagittal")

MAX_VALUE_CHARS = 100  # of words outside the closed lists: longest published location is 69

_REGION_PATTERNS: tuple[tuple[str, str], ...] = (
    # At one position the first entry wins: petrous temporal bone is no temporal lobe.
    ("skull base", r"petrous(?: (?:and|part of|part|right|left))?(?: temporal)?(?: bone)?"),
    ("skull base", r"skull base|cranial base|sphenoid\w*|clivus|olfactory groove"),
    ("skull base", r"(?:anterior|middle|temporal) (?:cranial )?fossa"),
    ("falx", r"para-?sagittal|falx|falcine|interhemispheric"),
    ("sellar region", r"pituitary|hypophys\w+|(?:supra|para|intra)?-?sellar?|chiasm\w*"),
    ("cerebellopontine angle", r"cerebello-?\s?pontine"),
    ("cerebellum", r"cerebell\w+"),
    ("brainstem", r"brain\s?-?stem|pons|pontine|midbrain|medulla"),
    ("posterior fossa", r"posterior (?:cranial )?fossa"),
    ("basal ganglia", r"basal ganglia|putamen|caudate|lentiform"),
    ("thalamus", r"thalam\w+"),
    ("ventricle", r"(?:intra|peri)?ventric\w+"),
    ("convexity", r"(?:cerebral )?convexit\w+"),
    ("frontal lobe", r"(?:bi)?front(?:al|o)\w*"),
    ("temporal lobe", r"(?:bi)?tempor(?:al|o)\w*"),
    ("parietal lobe", r"(?:bi)?pariet(?:al|o)\w*"),
    ("occipital lobe", r"(?:bi)?occipit(?:al|o)\w*"),
    ("cerebral hemisphere", r"hemispher\w+|cerebr\w+"),
)
_SIZE_PATTERNS = (("small", r"small"), ("medium", r"medium|moderate"), ("large", r"large"))
_SHAPE_PATTERNS = (
    ("round", r"round(?:ed|ish)?|spherical|globular|circular"),
    ("oval", r"oval|ovoid|elliptical"),
    ("irregular", r"irregular(?:ly)?"),
    ("lobulated", r"(?:multi)?lobul(?:ated|ar)"),
)
_INTENSITY_PATTERNS = (
    ("hyperintense", r"hyper-?\s?(?:intens|dens)\w+|high|bright|increased"),
    ("hypointense", r"hypo-?\s?(?:intens|dens)\w+|low|dark|decreased"),
    ("isointense", r"iso-?\s?(?:intens|dens)\w+|iso|intermediate"),
    ("mixed", r"mixed|heterogen\w+|varied|variable|varies|varying"),
)
_ORIENTATION_PATTERNS = (
    ("axial", r"axial|transverse|transaxial"),
    ("coronal", r"coronal"),
    ("sagittal", r"(?<!para-)(?<!para )sagg?itt?al"),
)
_SIDE_PATTERNS = (
    ("left", r"left"),
    ("right", r"right"),
    ("bilateral", r"bilateral\w*|both|bi(?:frontal|temporal|parietal|occipital)"),
    ("midline", r"midline"),
)
_TYPE_PATTERNS = (
    ("glioma", r"(?:\w*glioma|\w*glioblastoma|\w*astrocytoma)s?"),
    ("meningioma", r"meningiomas?"),
    (
        "pituitary",
        r"(?:micro|macro)?-?adenomas?"
        r"|(?:pituitary|hypophys\w+) (?:gland )?(?:tumou?r|mass|lesion|neoplasm)s?",
    ),
)
_PATTERNS = {
    "type": _TYPE_PATTERNS,
    "size": _SIZE_PATTERNS,
    "shape": _SHAPE_PATTERNS,
    "intensity": _INTENSITY_PATTERNS,
    "orientation": _ORIENTATION_PATTERNS,
    "location": _REGION_PATTERNS,
    "side": _SIDE_PATTERNS,
}


def _compile(patterns: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """Compile one alternation whose n-th group stands for the n-th value."""
    joined = "|".join(f"({pattern})" for _, pattern in patterns)
    return re.compile(rf"\b(?:{joined})\b", re.IGNORECASE), tuple(value for value, _ in patterns)


_COMPILED = {field: _compile(patterns) for field, patterns in _PATTERNS.items()}
_UNSTATED = re.compile(
    r"(?:n/?a|none|null|nil|-+|un(?:known|clear|specified|certain|determined)|not\b.*|no\b.*"
    r"|(?:the )?brain region|yes/no|describe .*)",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """Collapse white space and strip the marks around a value: quotes, asterisks, stops, dashes.

    >>> clean(' **Frontal  lobe**. ')
    'Frontal lobe'
    """
    return " ".join(text.split()).strip(" *_`\"',;:.—–-")


def is_unstated(text: str) -> bool:
    """Tell whether a cleaned value says nothing: empty, "n/a", "not specified", a template."""
    return not text or _UNSTATED.fullmatch(text) is not None


def find_values(field: str, text: str) -> list[str]:
    """Return the distinct closed-list values that `text` names, in order of mention.

    >>> find_values("intensity", "hyperintense with central hypointensity")
    ['hyperintense', 'hypointense']
    """
    regex, values = _COMPILED[field]
    found = (values[match.lastindex - 1] for match in regex.finditer(text) if match.lastindex)
    return list(dict.fromkeys(found))


def read_value(field: str, text: str) -> str | None:
    """Read a stated size, shape or intensity; None where nothing is stated.

    One closed-list value is returned as it is; of two, an intensity is "mixed" and else the first
    counts; three or more are a template that was copied ("small/medium/large") and state nothing.
    Words outside the closed list are kept, lower-case, at most `MAX_VALUE_CHARS` long.
    """
    words = clean(text)
    if is_unstated(words):
        return None
    found = find_values(field, words)
    if len(found) >= 3:
        return None
    if len(found) == 2:
        return "mixed" if field == "intensity" else found[0]
    return found[0] if found else shorten(words.lower(), MAX_VALUE_CHARS)


def read_type(text: str) -> Label | None:
    """Return the one class of tumour that `text` names; None for none or for several.

    A place is no class: "a mass in the pituitary region".

    >>> read_type("likely a pituitary macroadenoma"), read_type("glioma or meningioma")
    ('pituitary', None)
    """
    found = [label for label in LABELS if label in find_values("type", text)]
    return found[0] if len(found) == 1 else None


def read_orientation(text: str) -> Orientation | None:
    """Return the one plane that `text` names; None for none or for several."""
    found = [plane for plane in ORIENTATIONS if plane in find_values("orientation", text)]
    return found[0] if len(found) == 1 else None


def read_side(text: str) -> Side | None:
    """Return the side that `text` names; left and right together are bilateral.

    >>> read_side("right and left hemispheres")
    'bilateral'
    """
    found = find_values("side", text)
    if "bilateral" in found or {"left", "right"} <= set(found):
        return "bilateral"
    sides: tuple[Side, ...] = ("left", "right", "midline")
    return next((side for side in sides if side in found), None)


def read_location(text: str) -> tuple[str | None, Side | None, str | None]:
    """Read words that name a place: (region, side, words).

    The region is the first of `REGIONS` that is named. The words come back only where they are more
    than the region with its side, so that nothing is lost and nothing is kept twice.

    >>> read_location("left frontal lobe")
    ('frontal lobe', 'left', None)
    >>> read_location("Right sphenoid wing")
    ('skull base', 'right', 'Right sphenoid wing')
    """
    words = clean(text)
    if is_unstated(words):
        return None, None, None
    found = find_values("location", words)
    location = found[0] if found else None
    side = read_side(words)
    if words.lower() == location_words(location, side):
        return location, side, None
    return location, side, shorten(words, MAX_VALUE_CHARS)


def location_words(location: str | None, side: Side | None) -> str:
    """Word a region and its side; an unknown side is not worded.

    >>> location_words("temporal lobe", "left")
    'left temporal lobe'
    """
    return " ".join(part for part in (side if side != "unknown" else None, location) if part)


def shorten(text: str, max_chars: int) -> str:
    """Cut `text` to at most `max_chars`, between words where there is a space."""
    if len(text) <= max_chars:
        return text
    head = text[: max_chars + 1].rpartition(" ")[0] or text[:max_chars]
    return head.rstrip(" ,;:-")
