"""Where the lesions of training slices lie in their latents, so that their error can count more.

A lesion is a few cells of some hundred, so the mean error over a latent hardly tells a slice with
a tumour from one without.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.components.imaging.pixels import read_image, resize
from stages.components.latents import CROP_ZOOM

PIXELS_PER_CELL = 8  # of SD's and SDXL's VAEs


def lesion_cover(
    mask_paths: Sequence[Path | None], crops: Tensor, resolution: int, *, is_mirrored: bool = False
) -> Tensor:
    """Return which cells of the latents hold part of a lesion, bool (n, K, h, w).

    Args:
        mask_paths: PNG masks, 0 where there is no lesion; None: the slice has no mask.
        crops: int64 (n, K, 2), (top, left) in px as in `LatentCache`; the first is the whole slice.
        resolution: Side of the crops in px.
        is_mirrored: Of the slices' mirror images.
    """
    side = resolution // PIXELS_PER_CELL
    cover = torch.zeros(*crops.shape[:2], side, side, dtype=torch.bool)
    for row, path in enumerate(mask_paths):
        if path is None:
            continue
        inside = np.asarray(read_image(path) > 0, np.uint8) * np.uint8(255)
        if is_mirrored:
            inside = np.ascontiguousarray(inside[:, ::-1])
        whole = resize(inside, resolution)
        larger = resize(inside, round(resolution * CROP_ZOOM)) if crops.shape[1] > 1 else whole
        for crop, (top, left) in enumerate(crops[row].tolist()):
            view = larger[top : top + resolution, left : left + resolution] if crop else whole
            pixels = torch.from_numpy(np.ascontiguousarray(view > 127)).float()
            cover[row, crop] = F.max_pool2d(pixels[None, None], PIXELS_PER_CELL)[0, 0] > 0
    return cover
