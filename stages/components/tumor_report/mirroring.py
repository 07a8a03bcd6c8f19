"""Mirroring of captions: the side changes along with the slice."""

import re

from pipeline.contracts import Orientation

# Planes whose mirror image is a head too. A mirrored sagittal slice would look the other way, and
# its caption says nothing of it.
PLANES: tuple[Orientation, ...] = ("axial", "coronal")
SWAP = {"left": "right", "right": "left"}
SIDES = re.compile(r"\b(left|right)(?=\b|ward|most)", re.IGNORECASE)


def mirror_words(text: str) -> str:
    """Swap left and right in a caption, in the case they stand in.

    Example:
        >>> mirror_words("Left frontal lobe, right-sided shift; bright, bilateral")
        'Right frontal lobe, left-sided shift; bright, bilateral'
    """
    return SIDES.sub(swap, text)


def swap(match: re.Match[str]) -> str:
    """Return the other side in the same case."""
    word = match.group(1)
    other = SWAP[word.lower()]
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other


def mirrored_caption(text: str, *planes: Orientation | None) -> str | None:
    """Return the caption of the mirrored slice, or None where the plane forbids mirroring.

    Args:
        text: The caption as it is.
        planes: What slice and caption say of the plane; one of them must be known, and none may
            be sagittal.
    """
    stated = {plane for plane in planes if plane not in (None, "unknown")}
    if not stated or not stated <= set(PLANES):
        return None
    return mirror_words(text)
