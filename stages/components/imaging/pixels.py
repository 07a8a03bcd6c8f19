"""Pixels: decode, resize, convert ranges, write PNG.

There is one resize in the project, `resize`: Lanczos (a = 3) of Pillow on float32 samples, with the
kernel widened by the reduction factor (antialiased); uint8 input is rounded once, at the end.
Resizing alone can move FID by 6 and more, so nothing else may resize what trains or is scored
(Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR 2022).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

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
