"""What every feature extractor shares: pixels in, steps of one size, features out; weights checked.

Images go through a network in steps of a fixed number, the last one filled up with copies, because
libraries choose other kernels for other sizes: so a slice has the same features in whatever batch
and order it comes.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ValueRangeError

if TYPE_CHECKING:
    from torch import Tensor

CPU_STEP = 4  # of efficientnet_lite0: 19 ms an image on one core; 48 at 32, beyond the cache
GPU_STEP = 32


def run_network(
    forward: "Callable[[Tensor], Tensor]",
    images: NDArray[Any],
    *,
    name: str,
    input_size: int,
    num_features: int,
    device: str,
) -> NDArray[np.float32]:
    """Compute features of uint8 images (n, size, size, 3) as float32 (n, num_features).

    Args:
        forward: Takes float32 (step, 3, input_size, input_size) in [0, 255], gives (step, d).
        images: Resized to `input_size` by `imaging.resize` where they are not.
        name: Of the extractor, for messages.
        input_size: Side of the network's input in px.
        num_features: d.
        device: Where the network is.

    Raises:
        ValueRangeError: Not uint8, or not square with three channels.
    """
    import torch

    from stages.components import imaging

    imaging.require_uint8(images, f"features/{name}")
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise ValueRangeError(
            f"features/{name} expects square images (n, size, size, 3), got {images.shape}; "
            "pad them with scoring.to_square()"
        )
    step = CPU_STEP if device == "cpu" else GPU_STEP
    parts = [np.zeros((0, num_features), dtype=np.float32)]
    with torch.inference_mode():
        for start in range(0, len(images), step):
            batch = [imaging.resize(image, input_size) for image in images[start : start + step]]
            count = len(batch)
            batch += [batch[-1]] * (step - count)
            pixels = torch.from_numpy(np.stack(batch)).to(device).permute(0, 3, 1, 2).float()
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            parts.append(forward(pixels)[:count].float().cpu().numpy())
    return np.concatenate(parts)


def file_problem(path: Path, sha256: str | None, remedy: str) -> str | None:
    """Say what is wrong with a file of weights, with what to do; None where nothing is."""
    if not path.is_file():
        return f"no weights at {str(path)!r}. {remedy}"
    if sha256 is None:
        return None
    found = file_sha256(path)
    if found == sha256:
        return None
    return f"{path} has SHA-256 {found[:12]}…, expected {sha256[:12]}…. {remedy}"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
