"""Lesions in the grid of the latents, and what their weight does to the loss."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stages.finetune.encodings import CROP_ZOOM, lesion_cover
from stages.finetune.loss import sample_losses

SIDE = 64
WHOLE = torch.zeros(1, 1, 2, dtype=torch.int64)


def write_mask(folder: Path, rows: slice, columns: slice) -> Path:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[rows, columns] = 1  # oedema counts as much as the core
    path = folder / "mask.png"
    Image.fromarray(mask).save(path)
    return path


def cells(cover: torch.Tensor) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in cover.nonzero()]


def test_cells_that_a_lesion_touches_are_marked(tmp_path: Path) -> None:
    path = write_mask(tmp_path, slice(7, 10), slice(40, 44))
    cover = lesion_cover([path], WHOLE, SIDE)
    assert cover.shape == (1, 1, 8, 8)
    assert cells(cover[0, 0]) == [(0, 5), (1, 5)]


def test_the_mirror_image_has_its_lesion_on_the_other_side(tmp_path: Path) -> None:
    path = write_mask(tmp_path, slice(8, 16), slice(40, 48))
    cover = lesion_cover([path], WHOLE, SIDE, is_mirrored=True)
    assert cells(cover[0, 0]) == [(1, 2)]


def test_a_crop_of_the_enlarged_slice_moves_the_lesion(tmp_path: Path) -> None:
    path = write_mask(tmp_path, slice(24, 32), slice(24, 32))
    crops = torch.tensor([[[0, 0], [4, 8]]])
    cover = lesion_cover([path], crops, SIDE)
    assert cells(cover[0, 0]) == [(3, 3)]
    # 24 to 32 px become 27 to 36 by the zoom, then 23 to 32 and 19 to 28 in the crop
    assert CROP_ZOOM == 1.125
    assert cells(cover[0, 1]) == [(2, 2), (2, 3), (3, 2), (3, 3)]


def test_a_slice_without_a_mask_has_none_marked() -> None:
    assert not lesion_cover([None], WHOLE, SIDE).any()


def test_emphasis_multiplies_the_error_of_its_cells_alone() -> None:
    prediction, target = torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    prediction[..., 0, 0] = 1.0  # in the lesion
    prediction[..., 1, 1] = 2.0
    emphasis = torch.tensor([[[10.0, 1.0], [1.0, 1.0]]])
    weights = torch.tensor([0.5])
    assert sample_losses(prediction, target, weights).item() == 0.5 * (1 + 4) / 4
    assert sample_losses(prediction, target, weights, emphasis).item() == 0.5 * (10 + 4) / 4
