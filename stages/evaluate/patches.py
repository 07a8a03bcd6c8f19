"""Patches: what the judge marked in every image, kept for whoever draws the images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.components.judge.reading import Reading

FOLDER = "patches"


def save_patches(root: Path, arm: str, names: Sequence[str], readings: Sequence[Reading]) -> str:
    """Write the patches of an arm's images and return the file's path, relative to `root`.

    The file holds `names` (n,) and `patches`, bool (n, h, w) at the judge's size.
    """
    relative = f"{FOLDER}/{arm}.npz"
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    patches = np.stack([reading.patch for reading in readings])
    np.savez_compressed(path, allow_pickle=False, names=np.array(names), patches=patches)
    return relative
