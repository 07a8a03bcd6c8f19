"""Features on disk, keyed by what an image shows and by the network that saw it.

`FOLDER/NAME-DIGEST/SHARD.npz` holds the features of up to `SHARD_ROWS` images with their digests;
DIGEST stands for weights, input size and resize, so that another network or another way of
preparing images finds nothing here. Shards are whole or absent, and read one at a time.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import read_arrays, read_entry, write_arrays
from stages.components.imaging.pixels import RESIZE_KERNEL, RgbImage

Rows = NDArray[np.float32]
SHARD_ROWS = 512  # 4 MB at 2048 features
OPEN_SHARDS = 4


def image_digest(image: RgbImage) -> str:
    """Identify an image by its pixels, whatever file they came from."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


class FeatureCache:
    """The features that one network has computed before."""

    def __init__(self, root: Path, *, name: str, digest: str, input_size: int) -> None:
        key = hashlib.sha256(f"{digest}:{input_size}:{RESIZE_KERNEL}".encode()).hexdigest()
        self.folder = root / f"{name}-{key[:12]}"
        self.places: dict[str, tuple[Path, int]] = {}
        self.opened: OrderedDict[Path, Rows] = OrderedDict()
        self.waiting: dict[str, Rows] = {}
        for path in sorted(self.folder.glob("*.npz")):
            digests = read_entry(path, _read_digests)
            self._note(path, () if digests is None else digests)

    def find(self, digest: str) -> Rows | None:
        """Return the features (num_features,) of an image; None where nobody computed them."""
        if digest in self.waiting:
            return self.waiting[digest]
        if digest not in self.places:
            return None
        path, row = self.places[digest]
        if path not in self.opened:
            arrays = read_entry(path, read_arrays)
            if arrays is None:  # damaged, or gone since
                self.places = {d: place for d, place in self.places.items() if place[0] != path}
                return None
            self.opened[path] = arrays["features"]
            while len(self.opened) > OPEN_SHARDS:
                self.opened.popitem(last=False)
        self.opened.move_to_end(path)
        features: Rows = self.opened[path][row]
        return features

    def add(self, rows: Mapping[str, Rows]) -> None:
        """Keep features by the digest of their image; written a shard at a time."""
        self.waiting.update(rows)
        if len(self.waiting) >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self.waiting:
            return
        digests = sorted(self.waiting)
        features = np.stack([self.waiting[digest] for digest in digests])
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        path = self.folder / f"{name}.npz"
        write_arrays(path, digests=np.asarray(digests), features=features)
        self._note(path, digests)
        self.waiting.clear()

    def _note(self, path: Path, digests: Iterable[str]) -> None:
        for row, digest in enumerate(digests):
            self.places[str(digest)] = (path, row)


def _read_digests(path: Path) -> NDArray[np.str_]:
    with path.open("rb") as content, np.load(content, allow_pickle=False) as shard:
        digests: NDArray[np.str_] = shard["digests"]
    return digests
