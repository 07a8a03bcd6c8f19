"""Pixels: decode, find the head, crop, pad, resize, convert ranges, write PNG.

There is one resize in the project, `resize`: Lanczos (a = 3) of Pillow on float32 samples, with the
kernel widened by the reduction factor (antialiased); uint8 input is rounded once, at the end.
Resizing alone can move FID by 6 and more, so nothing else may resize images
(Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR 2022).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin
from scipy import ndimage

from pipeline.errors import DataError, ValueRangeError

GrayImage: TypeAlias = NDArray[np.uint8]  # (height, width) in [0, 255]
RgbImage: TypeAlias = NDArray[np.uint8]  # (height, width, 3) in [0, 255]
RgbBatch: TypeAlias = NDArray[np.uint8]  # (n, height, width, 3) in [0, 255]
Mask: TypeAlias = NDArray[np.uint8]  # (height, width): 0 none, 1 oedema, 2 enhancing, 3 necrosis
FloatImage: TypeAlias = NDArray[np.float32]  # (height, width)
Volume: TypeAlias = NDArray[np.float32]  # (i, j, k), RAS: i to the right, j to anterior, k to top
ImageT = TypeVar("ImageT", bound=NDArray[Any])

RESIZE_KERNEL = "Pillow Lanczos (a = 3), antialiased, float32, rounded once"
WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
VOLUME_PERCENTILES = (0.5, 99.5)
# Of 255. With 184 the foreground of phantoms (quartiles 51, 81, 106) looks like that of published
# JPEG slices (51, 71, 98); with 255 it is 1.4 times as bright.
DISPLAY_LEVEL = 184.0
WORKING_PX = 224  # longest side on which the head is searched
FRAME_LEVEL = 96  # grey value from which a flat line at the edge is a drawn frame


class Box(NamedTuple):
    """Rows `top:bottom` and columns `left:right` of an image, in pixels."""

    top: int
    bottom: int
    left: int
    right: int


def read_image(path: Path) -> GrayImage:
    """Decode an image file of any Pillow mode into one channel, uint8 (height, width).

    Colour becomes luminance (ITU-R 601), transparency lies over black, EXIF rotation is applied.
    Pixels wider than 8 bits are rescaled by `robust_rescale`.

    Raises:
        DataError: The file is missing, truncated, not an image, too large or not finite.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened)
    except FileNotFoundError as error:
        raise DataError(f"image {str(path)!r} does not exist; check the source's root") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(
            f"image {str(path)!r} cannot be decoded ({error}); replace or remove the file"
        ) from error
    if image.mode in WIDE_MODES:
        wide = np.asarray(image, dtype=np.float32)
        if not np.isfinite(wide).all():
            raise DataError(f"image {str(path)!r} holds NaN or infinite pixels; replace the file")
        return robust_rescale(wide)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        straight = image.convert("RGBA")
        black = Image.new("RGBA", straight.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, straight)
    return np.asarray(image.convert("L"), dtype=np.uint8)


def to_uint8(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Convert floats in [-1, 1] of any shape to uint8 in [0, 255], rounding to nearest.

    A sampler's output leaves the range now and then; clamp it where it is made, not here.

    Raises:
        ValueRangeError: Not a float array, not finite, or outside [-1, 1] by more than 1e-3.
    """
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueRangeError(f"to_uint8 expects floats in [-1, 1]; got {image.dtype}")
    low, high = (float(image.min()), float(image.max())) if image.size else (0.0, 0.0)
    if not (low >= -1.001 and high <= 1.001):  # False for NaN too
        raise ValueRangeError(
            f"to_uint8 expects floats in [-1, 1]; got {image.dtype} in [{low:.2f}, {high:.2f}]"
        )
    scaled = np.clip(np.rint((image + 1.0) * 127.5), 0, 255)
    return np.asarray(scaled, dtype=np.uint8)


def to_float(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert uint8 in [0, 255] of any shape to float32 in [-1, 1].

    Raises:
        ValueRangeError: The array is not uint8.
    """
    require_uint8(image, "to_float")
    return (image.astype(np.float32) / np.float32(127.5) - np.float32(1)).astype(np.float32)


def require_uint8(image: NDArray[Any], where: str) -> None:
    """Refuse anything but uint8; `where` names the caller in the message.

    Raises:
        ValueRangeError: The array is not uint8.
    """
    if image.dtype != np.uint8:
        low, high = (float(image.min()), float(image.max())) if image.size else (0.0, 0.0)
        raise ValueRangeError(
            f"{where} expects uint8 in [0, 255]; got {image.dtype} in [{low:.2f}, {high:.2f}]. "
            "Convert with imaging.to_uint8()."
        )


def to_rgb(image: GrayImage) -> RgbImage:
    """Repeat one channel three times: (height, width) to (height, width, 3)."""
    return np.repeat(image[..., None], 3, axis=-1)


def robust_rescale(
    values: NDArray[np.floating[Any]], percentiles: tuple[float, float] = VOLUME_PERCENTILES
) -> NDArray[np.uint8]:
    """Map the percentiles of a whole volume (or wide image) to 0 and `DISPLAY_LEVEL`, to uint8.

    One scale per volume keeps slices of a scan comparable and edge slices dark. The upper end is
    taken among values above the lower one, so that much air does not saturate a small head. The
    room above it keeps fat, vessels and enhancing tumours apart instead of clipping them.

    Raises:
        DataError: All values are equal, so there is no picture.
    """
    low = float(np.percentile(values, percentiles[0]))
    above = values[values > low]
    high = float(np.percentile(above, percentiles[1])) if above.size else low
    if not high > low:
        raise DataError(f"all intensities are about {low:g}; there is no picture to rescale")
    scaled = (values - low) * (DISPLAY_LEVEL / (high - low))
    return np.asarray(np.rint(np.clip(scaled, 0, 255)), dtype=np.uint8)


def resize(image: ImageT, size_px: int | tuple[int, int]) -> ImageT:
    """Resize (height, width) or (height, width, channel) to `size_px`, keeping the dtype.

    The kernel is `RESIZE_KERNEL`. An int means a square; a pair is (height, width). uint8 stays
    uint8 in [0, 255]; float32 may overshoot its range at sharp edges, as Lanczos does.

    Raises:
        ValueRangeError: Neither uint8 nor float32, or not two or three axes.
    """
    if image.dtype not in (np.uint8, np.float32) or image.ndim not in (2, 3):
        raise ValueRangeError(
            "resize expects uint8 or float32 with axes (height, width[, channel]); "
            f"got {image.dtype} {image.shape}"
        )
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    if image.shape[:2] == (height, width):
        return image.copy()
    planes = image[..., None] if image.ndim == 2 else image
    done = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(planes[..., c], dtype=np.float32)).resize(
                (width, height), Image.Resampling.LANCZOS
            )
        )
        for c in range(planes.shape[-1])
    ]
    result = np.stack(done, axis=-1).reshape(height, width, *image.shape[2:])
    if image.dtype == np.uint8:
        result = np.clip(np.rint(result), 0, 255)
    return cast(ImageT, result.astype(image.dtype))


def resize_mask(mask: Mask, size_px: int | tuple[int, int]) -> Mask:
    """Resize labels (height, width) by nearest neighbour, so that no new label appears."""
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=np.uint8)


def pad_to_square(image: ImageT) -> ImageT:
    """Pad the shorter side of (height, width) evenly with 0; an odd pixel goes last."""
    height, width = image.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    padding = ((top, side - height - top), (left, side - width - left))
    return cast(ImageT, np.pad(image, padding, constant_values=0))


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


def save_png(path: Path, image: NDArray[np.uint8], text: Mapping[str, str] | None = None) -> None:
    """Write (height, width) or (height, width, 3) uint8 as PNG; same input, same bytes.

    `text` becomes iTXt chunks in sorted order; no time stamp is written.

    Raises:
        ValueRangeError: The array is not uint8.
    """
    require_uint8(image, "save_png")
    chunks = PngImagePlugin.PngInfo()
    for key in sorted(text or {}):
        chunks.add_itxt(key, (text or {})[key])
    Image.fromarray(image).save(path, format="PNG", pnginfo=chunks, compress_level=6)
