"""Section of images: synthetic slices beside reference slices, and the prompts they share."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.contracts import BASE, LABELS
from stages.report.artifacts import ReportInputs, is_base
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

REAL_BLOCK = "real test slices"


def read_blocks(inputs: ReportInputs, images_per_class: int) -> list[SliceBlock]:
    """Choose the slices of the grid: the real test slices first, then every arm, then bases."""
    real = [record for record in inputs.preprocess.records() if record.split == "test"]
    columns = {
        label: tuple(
            Cell(inputs.preprocess.path(record.image_path), record.slice_id, "")
            for record in pick_evenly([r for r in real if r.label == label], images_per_class)
        )
        for label in LABELS
    }
    blocks = [SliceBlock(REAL_BLOCK, is_synthetic=False, columns=columns)]
    for name, artifact in inputs.generate.items():
        records = [r for r in artifact.records() if r.counterfactual_of is None]
        columns = {
            label: tuple(
                Cell(artifact.path(record.image_path), record.image_id, record.prompt)
                for record in pick_evenly(
                    [r for r in records if r.label == label], images_per_class
                )
            )
            for label in LABELS
        }
        blocks.append(SliceBlock(name, is_synthetic=True, columns=columns))
    return blocks


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
    name = block.name.removeprefix(BASE) + ", no LoRA" if is_base(block.name) else block.name
    return GridBlock(name, picture, block.labels, prompts if block.is_synthetic else ())


def describe_block(block: SliceBlock) -> str:
    """Say in words what a block of the grid shows."""
    kind = "synthetic slices" if block.is_synthetic else "real slices"
    return f"{kind} of {block.name}, one column each for {', '.join(block.labels)}"


def share_prompts(blocks: Sequence[GridBlock]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the prompts of the synthetic blocks where they are the same in all, else nothing."""
    distinct = {block.prompts for block in blocks if block.prompts}
    return distinct.pop() if len(distinct) == 1 else ()
