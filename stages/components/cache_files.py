"""Files of a cache that any run may share: keyed by content, whole or absent."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` make a file that is whole or absent, even if two processes make the same one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write an `.npz`, whole or absent, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(partial: Path) -> None:
        with partial.open("wb") as out:
            np.savez(out, allow_pickle=False, **arrays)

    write_whole(path, write)


def weights_digest(network: nn.Module, settings: Mapping[str, Any]) -> str:
    """Identify a network by its weights and settings, wherever its folder lies."""
    public = {key: value for key, value in settings.items() if not key.startswith("_")}
    digest = hashlib.sha256(repr(sorted(public.items())).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
