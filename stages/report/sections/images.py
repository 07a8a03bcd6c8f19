"""Section of images: synthetic slices beside reference slices, and the prompts they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import (
    LABELS,
    REAL,
    UNKNOWN,
    Artifact,
    Modality,
    SliceRecord,
    SyntheticRecord,
)
from stages.report.artifacts import ReportInputs
from stages.report.numbers import Legend
from stages.report.pictures import (
    Cell,
    Picture,
    SliceBlock,
    draw_block,
    draw_grid,
    encode_png,
    inline_image,
    pick_evenly,
)

CONTRASTS: Mapping[Modality, str] = {
    "t1": "T1",
    "t1ce": "T1+C",
    "t2": "T2",
    "flair": "FLAIR",
    "unknown": "",
}
Patches = Mapping[str, NDArray[np.bool_]]


def read_blocks(inputs: ReportInputs, images_per_class: int) -> list[SliceBlock]:
    """Choose the slices of the grid: the source's test slices first, then every arm, then bases."""
    legend = Legend({}, inputs.source.slices)
    test = [record for record in inputs.preprocess.records() if record.split == "test"]
    known = read_patches(inputs, REAL)
    cells = [(r.label, _cell_of_slice(r, inputs.preprocess, known)) for r in test]
    blocks = [_choose(legend.row(REAL), cells, images_per_class, is_synthetic=False)]
    for arm, artifact in inputs.generate.items():
        records = [r for r in artifact.records() if r.counterfactual_of is None]
        known = read_patches(inputs, arm)
        cells = [(r.label, _cell_of_image(r, artifact, known)) for r in records]
        blocks.append(_choose(legend.row(arm), cells, images_per_class, is_synthetic=True))
    return blocks


def read_patches(inputs: ReportInputs, arm: str) -> Patches:
    """Read what the judge of evaluate marked in the images of an arm; nothing without a judge."""
    paths = (inputs.evaluate.manifest["notes"].get("location") or {}).get("patches") or {}
    if arm not in paths:
        return {}
    with np.load(inputs.evaluate.path(paths[arm]), allow_pickle=False) as file:
        return dict(zip(file["names"].tolist(), file["patches"], strict=True))


def _choose(
    name: str, cells: Sequence[tuple[str, Cell]], count: int, *, is_synthetic: bool
) -> SliceBlock:
    columns = {
        label: tuple(pick_evenly([cell for of, cell in cells if of == label], count))
        for label in LABELS
    }
    return SliceBlock(name, is_synthetic=is_synthetic, columns=columns)


def _cell_of_slice(record: SliceRecord, source: Artifact[SliceRecord], patches: Patches) -> Cell:
    return Cell(
        source.path(record.image_path),
        record.slice_id,
        "",
        words=_word(record.modality, record.orientation),
        has_sides=record.orientation not in ("sagittal", UNKNOWN),
        patch=patches.get(record.slice_id),
    )


def _cell_of_image(
    record: SyntheticRecord, artifact: Artifact[SyntheticRecord], patches: Patches
) -> Cell:
    plane = record.requested.orientation or UNKNOWN
    return Cell(
        artifact.path(record.image_path),
        record.image_id,
        record.prompt,
        words=_word(record.modality, plane),
        has_sides=plane not in ("sagittal", UNKNOWN),
        patch=patches.get(record.image_id),
    )


def _word(modality: Modality, plane: str) -> str:
    return ", ".join(word for word in (CONTRASTS[modality], plane.replace(UNKNOWN, "")) if word)


@dataclass(frozen=True)
class GridBlock:
    """One block of the image grid, with its classes and the prompts of its rows."""

    name: str
    picture: Picture
    labels: tuple[str, ...]
    prompts: tuple[tuple[str, tuple[str, ...]], ...]  # (class, prompts from top to bottom)


def lay_out_images(
    inputs: ReportInputs, images_per_class: int
) -> tuple[tuple[GridBlock, ...], bytes]:
    """Lay out the grid block by block, and draw all of it as one PNG."""
    blocks = read_blocks(inputs, images_per_class)
    laid_out = [
        lay_out_block(
            block,
            inline_image(draw_block(block), describe_block(block), is_synthetic=block.is_synthetic),
        )
        for block in blocks
    ]
    return tuple(laid_out), encode_png(draw_grid(blocks), is_synthetic=len(blocks) > 1)


def lay_out_block(block: SliceBlock, picture: Picture) -> GridBlock:
    """Put the prompts of a block beside its picture."""
    prompts = tuple(
        (label, tuple(cell.text for cell in block.columns[label])) for label in block.labels
    )
    return GridBlock(block.name, picture, block.labels, prompts if block.is_synthetic else ())


def describe_block(block: SliceBlock) -> str:
    """Say in words what a block of the grid shows."""
    shown = f"synthetic slices of {block.name}" if block.is_synthetic else block.name
    return f"{shown}, one column each for {', '.join(block.labels)}"


def describe_grid(inputs: ReportInputs) -> str:
    """Say how the grid was chosen and how to read its marks."""
    words = (
        "Chosen by position, evenly spaced over the records of each class, never by looks. Below "
        "each slice stand its contrast (T1+C: T1 after contrast agent) and plane: for a synthetic "
        "one those that its prompt asks for. Left and right are those of the image, as prompts "
        f"mean them. {inputs.source.convention}"
    )
    if read_patches(inputs, REAL):
        words += " The line is the judge's outline of what it takes for the tumour."
    return words


def share_prompts(blocks: Sequence[GridBlock]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the prompts of the synthetic blocks where they are the same in all, else nothing."""
    distinct = {block.prompts for block in blocks if block.prompts}
    return distinct.pop() if len(distinct) == 1 else ()
