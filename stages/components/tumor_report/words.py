"""Words of the caption schema: its closed lists, and how a place is worded."""

from pipeline.contracts import Orientation, Side

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
