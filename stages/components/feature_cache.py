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

from stages.components.imaging import RESIZE_KERNEL, RgbImage

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
            with np.load(path, allow_pickle=False) as shard:
                self._note(path, shard["digests"])

    def __contains__(self, digest: str) -> bool:
        return digest in self.waiting or digest in self.places

    def read(self, digest: str) -> Rows:
        """Return the features (num_features,) of an image that is here."""
        if digest in self.waiting:
            return self.waiting[digest]
        path, row = self.places[digest]
        if path not in self.opened:
            with np.load(path, allow_pickle=False) as shard:
                self.opened[path] = shard["features"]
            while len(self.opened) > OPEN_SHARDS:
                self.opened.popitem(last=False)
        self.opened.move_to_end(path)
        found: Rows = self.opened[path][row]
        return found

    def add(self, rows: Mapping[str, Rows]) -> None:
        """Keep features by the digest of their image; written a shard at a time."""
        self.waiting.update(rows)
        if len(self.waiting) >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        from stages.components.cache_files import write_whole

        if not self.waiting:
            return
        digests = sorted(self.waiting)
        features = np.stack([self.waiting[digest] for digest in digests])
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.npz"

        def write(partial: Path) -> None:
            with partial.open("wb") as out:
                np.savez(out, allow_pickle=False, digests=np.asarray(digests), features=features)

        write_whole(path, write)
        self._note(path, digests)
        self.waiting.clear()

    def _note(self, path: Path, digests: Iterable[str]) -> None:
        for row, digest in enumerate(digests):
            self.places[str(digest)] = (path, row)
