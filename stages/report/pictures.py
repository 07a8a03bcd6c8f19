"""Pictures of the page: grids of slices, columns by class, and images and charts inlined."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib import get_data_path
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from scipy import ndimage

from pipeline.contracts import LABELS, Label
from stages.report import charts

CELL_PX = 128  # a cell's side; larger images are resized to it, smaller ones stay as they are
GAP_PX = 4
WORDS_PX = 16  # under a cell
BLOCKS_PER_ROW = 3
MARGIN_PX = 28
TITLE_PX = 34
HEAD_PX = 24
INK, FAINT, PAPER = "#1d2733", "#5b6775", "#ffffff"
OUTLINE = (64, 224, 208)
SIDES = "#9fb3c6"  # of the words left and right, on the black around a head

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Cell:
    """One image of the grid, and the words under the grid."""

    image_path: Path
    name: str  # slice_id or image_id
    text: str  # the prompt; "" for a real slice
    words: str = ""  # contrast and plane, written under it
    has_sides: bool = False  # left and right of the image are marked; sagittal slices have none
    patch: NDArray[np.bool_] | None = None  # (h, w) of any size, outlined


@dataclass(frozen=True)
class SliceBlock:
    """The slices of one arm (or the real ones), a column for each class."""

    name: str
    is_synthetic: bool
    columns: Mapping[Label, tuple[Cell, ...]]

    @property
    def labels(self) -> tuple[Label, ...]:
        """Classes that have images, in the order of the contracts."""
        return tuple(label for label in LABELS if self.columns.get(label))


def pick_evenly(items: Sequence[ItemT], count: int) -> list[ItemT]:
    """Pick `count` items evenly spaced over a sequence, first and last included.

    Position alone decides, never what an image looks like. Deterministic.

    >>> pick_evenly("abcdefghi", 3)
    ['a', 'e', 'i']
    """
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def draw_block(block: SliceBlock) -> Image.Image:
    """Compose a block: one column per class, one row per image, each with its words below."""
    labels = block.labels
    rows = max((len(block.columns[label]) for label in labels), default=0)
    step = CELL_PX + WORDS_PX + GAP_PX
    width = len(labels) * (CELL_PX + GAP_PX) - GAP_PX
    canvas = Image.new("RGB", (max(width, 1), max(rows * step - GAP_PX, 1)), PAPER)
    pen = ImageDraw.Draw(canvas)
    small, letters = _font("DejaVuSans.ttf", 11), _font("DejaVuSans.ttf", 9)
    for column, label in enumerate(labels):
        for row, cell in enumerate(block.columns[label]):
            tile = Image.fromarray(draw_cell(cell))
            left, top = column * (CELL_PX + GAP_PX), row * step
            offset = ((CELL_PX - tile.width) // 2, (CELL_PX - tile.height) // 2)
            canvas.paste(tile, (left + offset[0], top + offset[1]))
            pen.text((left + CELL_PX // 2, top + CELL_PX + 1), cell.words, FAINT, small, "ma")
            if cell.has_sides:
                pen.text((left + 4, top + 3), "left", SIDES, letters)
                pen.text((left + CELL_PX - 4, top + 3), "right", SIDES, letters, "ra")
    return canvas


def draw_cell(cell: Cell) -> NDArray[np.uint8]:
    """Read a cell's image, with its patch outlined."""
    pixels = read_cell(cell.image_path).copy()
    if cell.patch is not None:
        pixels[find_edge(cell.patch, pixels.shape[:2])] = OUTLINE
    return pixels


def find_edge(marked: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Find the edge of what is marked in (h, w), scaled to (height, width)."""
    size = (shape[1], shape[0])
    scaled = Image.fromarray(marked.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    inside = np.asarray(scaled) > 0
    edge: NDArray[np.bool_] = inside & ~ndimage.binary_erosion(inside)
    return edge


def draw_grid(blocks: Sequence[SliceBlock]) -> Image.Image:
    """Compose all blocks with their names and classes written above the columns."""
    drawn = [draw_block(block) for block in blocks]
    title, small = _font("DejaVuSans-Bold.ttf", 19), _font("DejaVuSans.ttf", 14)
    per_row = min(BLOCKS_PER_ROW, max(len(blocks), 1))
    widest = max((image.width for image in drawn), default=1)
    tallest = max((image.height for image in drawn), default=1) + TITLE_PX + HEAD_PX
    rows = -(-len(blocks) // per_row)
    size = (
        MARGIN_PX + per_row * (widest + MARGIN_PX),
        MARGIN_PX + max(rows, 1) * (tallest + MARGIN_PX),
    )
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    for index, (block, image) in enumerate(zip(blocks, drawn, strict=True)):
        left = MARGIN_PX + (index % per_row) * (widest + MARGIN_PX)
        top = MARGIN_PX + (index // per_row) * (tallest + MARGIN_PX)
        pen.text((left, top), block.name, INK, font=title)
        for column, label in enumerate(block.labels):
            middle = left + column * (CELL_PX + GAP_PX) + CELL_PX // 2
            pen.text((middle, top + TITLE_PX), label, FAINT, font=small, anchor="ma")
        canvas.paste(image, (left, top + TITLE_PX + HEAD_PX))
    return canvas


def encode_png(image: Image.Image, *, is_synthetic: bool) -> bytes:
    """Encode as PNG, marked when it shows synthetic slices; grey images take one channel."""
    marks = PngImagePlugin.PngInfo()
    marks.add_text("Software", "mrisynth")
    if is_synthetic:
        marks.add_text("synthetic", "true")
        marks.add_text("Comment", "Shows synthetic images. For research only.")
    pixels = np.asarray(image)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, pnginfo=marks)
    return buffer.getvalue()


def read_cell(path: Path) -> NDArray[np.uint8]:
    """Read an image as RGB, its longer side at most `CELL_PX`; for the eye, never for a score."""
    with Image.open(path) as opened:
        shown = opened.convert("RGB")
    shown.thumbnail((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
    return np.asarray(shown)


def _font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size_px)


@dataclass(frozen=True)
class Picture:
    """An inlined image with words for those who cannot see it."""

    source: str  # a data: URI
    alt: str
    width: int
    height: int

    @property
    def content(self) -> bytes:
        """Return the image file itself."""
        return base64.b64decode(self.source.partition(",")[2])


@dataclass(frozen=True)
class Chart:
    """A chart with its caption."""

    picture: Picture
    caption: str


def to_data_uri(content: bytes, media_type: str) -> str:
    """Inline bytes as a `data:` URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def inline_image(image: Image.Image, alt: str, *, is_synthetic: bool) -> Picture:
    """Inline an image as a PNG, marked when it shows synthetic slices."""
    content = encode_png(image, is_synthetic=is_synthetic)
    return Picture(to_data_uri(content, "image/png"), alt, image.width, image.height)


def to_picture(figure: Figure, alt: str) -> Picture:
    """Inline a chart as SVG, at 96 px an inch."""
    width, height = (round(side * 96) for side in figure.get_size_inches())
    return Picture(to_data_uri(charts.to_svg(figure), "image/svg+xml"), alt, width, height)
