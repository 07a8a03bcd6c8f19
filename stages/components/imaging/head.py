"""Heads in slices: finding them, cropping to them, squaring and resizing what is left."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.errors import DataError
from stages.components.imaging.pixels import (
    GrayImage,
    ImageT,
    Mask,
    pad_to_square,
    require_uint8,
    resize,
    resize_mask,
)

WORKING_PX = 224  # longest side on which the head is searched
FRAME_LEVEL = 96  # grey value from which a flat line at the edge is a drawn frame


class Box(NamedTuple):
    """Rows `top:bottom` and columns `left:right` of an image, in pixels."""

    top: int
    bottom: int
    left: int
    right: int


def crop(image: ImageT, box: Box) -> ImageT:
    """Return the part of (height, width) inside `box`."""
    return cast(ImageT, image[box.top : box.bottom, box.left : box.right])


def head_box(image: GrayImage) -> Box:
    """Find the head against its background: the tight box of the large components.

    Drawn frames are blanked first; the threshold lies between the background's level and Otsu's,
    low enough for dark scalp; an opening drops letters, rulers and noise; then components of at
    least a tenth of the largest one's filled area are kept. Deterministic.

    Raises:
        DataError: The image is constant or nothing stands out from the background.
        ValueRangeError: The image is not uint8 (height, width).
    """
    require_uint8(image, "head_box")
    height, width = image.shape
    scale = max(1.0, max(height, width) / WORKING_PX)
    small = image
    if scale > 1.0:
        small = resize(image, (max(1, round(height / scale)), max(1, round(width / scale))))
    foreground = head_mask(small)
    if foreground is None:
        raise DataError(
            f"no head found in an image of {width}x{height} px (values {int(image.min())} to "
            f"{int(image.max())}); remove the file or look at it"
        )
    rows, columns = np.flatnonzero(foreground.any(1)), np.flatnonzero(foreground.any(0))
    down, across = height / small.shape[0], width / small.shape[1]
    return Box(
        top=int(rows[0] * down),
        bottom=min(height, int(np.ceil((rows[-1] + 1) * down))),
        left=int(columns[0] * across),
        right=min(width, int(np.ceil((columns[-1] + 1) * across))),
    )


def head_mask(image: GrayImage) -> NDArray[np.bool_] | None:
    """Return the head's filled outline as bool (height, width), or None without one."""
    smooth = ndimage.uniform_filter(blank_frame(image).astype(np.float32), size=3)
    smooth = np.minimum(smooth, np.percentile(smooth, 99.5))
    if float(smooth.max() - smooth.min()) < 8:
        return None
    otsu = otsu_threshold(smooth)
    dark = smooth[smooth < otsu]
    level, spread = float(np.median(dark)), float(np.percentile(dark, 25))
    # Where the head fills the picture, dark brain and not air is the median of the dark half.
    level = min(level, spread + 12)
    foreground = smooth > level + 0.4 * (otsu - level)
    radius = max(1, round(max(image.shape) / 100))
    disc = np.hypot(*np.ogrid[-radius : radius + 1, -radius : radius + 1]) <= radius + 0.3
    # A skull thinner than the disc is filled before it is opened, but no frame around a picture.
    filled = ndimage.binary_fill_holes(foreground)
    solid = filled if filled.mean() < 0.97 else foreground
    padded = np.pad(solid, radius, mode="edge")  # keeps heads that touch the edge
    opened = ndimage.binary_opening(padded, disc)[radius:-radius, radius:-radius]
    labels, count = ndimage.label(ndimage.binary_fill_holes(opened))
    if count == 0:
        return None
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    kept = np.flatnonzero(areas >= 0.1 * areas.max())
    head = np.isin(labels, kept) & (labels > 0)
    return head if head.mean() >= 0.02 else None


def blank_frame(image: GrayImage) -> GrayImage:
    """Set flat bright lines along each edge to 0: white borders and drawn frames.

    A line counts when most of it has one bright value; up to a tenth of each side is searched.
    """
    clean = image.copy()
    for turned in (clean, clean[::-1], clean.T, clean.T[::-1]):
        edge = turned[: max(2, turned.shape[0] // 10)]
        low, middle = np.percentile(edge, (20, 50), axis=1)
        flat = np.flatnonzero((low >= FRAME_LEVEL) & (middle - low < 24))
        turned[: flat[-1] + 1 if flat.size else 0] = 0
    return clean


def otsu_threshold(values: NDArray[np.floating[Any]]) -> float:
    """Return the threshold with the largest variance between two classes, on 256 bins.

    Source: Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
    between = np.nan_to_num(below * above * gap**2, nan=0.0, posinf=0.0, neginf=0.0)
    best = np.flatnonzero(between >= between.max())
    return float(centres[best].mean())


def widen(box: Box, shape: tuple[int, ...], margin: float) -> Box:
    """Grow a box by `margin` of its longer side on every side, kept inside (height, width)."""
    extra = round(margin * max(box.bottom - box.top, box.right - box.left))
    return Box(
        top=max(0, box.top - extra),
        bottom=min(shape[0], box.bottom + extra),
        left=max(0, box.left - extra),
        right=min(shape[1], box.right + extra),
    )


def crop_to_head(image: GrayImage, margin: float) -> GrayImage:
    """Cut to the head plus `margin` of its longer side, never beyond the image.

    Raises:
        DataError: No head is found.
    """
    return crop(image, widen(head_box(image), image.shape, margin))


def prepare_slice(image: GrayImage, image_size: int, crop_margin: float) -> GrayImage:
    """Crop to the head, pad to a square with 0 and resize: uint8 (image_size, image_size).

    Raises:
        DataError: No head is found.
    """
    return resize(pad_to_square(crop_to_head(image, crop_margin)), image_size)


def prepare_pair(
    image: GrayImage, mask: Mask, image_size: int, crop_margin: float
) -> tuple[GrayImage, Mask]:
    """Prepare an image and its mask by the same crop and padding; labels by nearest neighbour.

    Raises:
        DataError: No head is found.
    """
    box = widen(head_box(image), image.shape, crop_margin)
    picture = resize(pad_to_square(crop(image, box)), image_size)
    return picture, resize_mask(pad_to_square(crop(mask, box)), image_size)
