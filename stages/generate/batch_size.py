"""Batch size of sampling, found by the memory there is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import psutil
import torch

from pipeline.contracts import TumorReport
from pipeline.errors import TrainingError, is_out_of_memory
from stages.components.diffusion.sampling import Fault, Sampler
from stages.components.imaging.pixels import RgbBatch

LARGEST = 64  # images of one batch with batch_size: auto; beyond, GPUs gain little
# Full-size float32 maps that the decoder's widest layer needs at once: input, norm, activation and
# output. It needs more memory than the UNet at any size, since its maps have the image's sides.
MAPS = 4
GUIDED = 12  # times that where gradients keep the maps of every layer of VAE and UNet
SHARE = 0.5  # of the free memory, for what the estimate leaves out


@dataclass
class BatchSize:
    """The number of images sampled at once; `auto` is halved where memory does not suffice."""

    size: int
    is_auto: bool
    say: Callable[[str], None]

    def shrink(self, tried: int, cause: str) -> None:
        """Halve the size after `tried` images did not fit.

        Raises:
            TrainingError: The size was asked for, or it is one already.
        """
        if not self.is_auto:
            raise TrainingError(
                f"memory does not suffice for generate.batch_size {tried} ({cause}). What is done "
                "is kept; set generate.batch_size: auto or a smaller one, then rerun."
            )
        if tried == 1:
            raise TrainingError(
                f"memory does not suffice for one image ({cause}). What is done is kept; lower "
                "generate.image_size, set dtype: bfloat16 or free memory, then rerun."
            )
        self.size = tried // 2
        self.say(f"generate: {tried} images at once do not fit; going on with {self.size}")


def build_batch_size(
    size: int | Literal["auto"], sampler: Sampler, say: Callable[[str], None]
) -> BatchSize:
    """Take the size asked for, or estimate one from the free memory of the sampler's device."""
    if size != "auto":
        return BatchSize(size, False, say)
    if sampler.device.type == "cuda":
        free = int(torch.cuda.mem_get_info(sampler.device)[0])
    else:
        free = int(psutil.virtual_memory().available)
    per_image = bytes_per_image(sampler.pipeline.vae, sampler.image_size)
    largest = largest_size(free, per_image * (1 if sampler.guidance is None else GUIDED))
    say(f"generate: batch size {largest}, by the {free / 2**30:.1f} GiB that are free")
    return BatchSize(largest, True, say)


def bytes_per_image(vae: Any, image_size: int) -> int:
    """Estimate the memory of one image at its peak, in the decoder's last block.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(block_out_channels=(128, 256, 512, 512))
        >>> bytes_per_image(SimpleNamespace(config=config), 512) / 2**30
        1.0
    """
    widths = vae.config.block_out_channels
    return 4 * MAPS * int(widths[min(1, len(widths) - 1)]) * image_size**2


def largest_size(free: int, per_image: int) -> int:
    """Return the largest power of two, 1 to `LARGEST`, that fits in half of the free bytes.

    Example:
        >>> [largest_size(free * 2**30, 2**30) for free in (1, 9, 1000)]
        [1, 4, 64]
    """
    size = LARGEST
    while size > 1 and size * per_image > SHARE * free:
        size //= 2
    return size


def draw(
    sampler: Sampler,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch: BatchSize,
    reports: Sequence[TumorReport] = (),
) -> tuple[RgbBatch, list[Fault | None]]:
    """Sample one image per prompt, as many at once as `batch` says; see `Sampler.draw`.

    Raises:
        TrainingError: Memory does not suffice, and no smaller size is left.
    """
    images: list[RgbBatch] = []
    faults: list[Fault | None] = []
    while len(faults) < len(prompts):
        chosen = slice(len(faults), len(faults) + batch.size)
        cause = None
        try:
            part, part_faults = sampler.draw(prompts[chosen], seeds[chosen], reports[chosen])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
        if cause is None:
            images.append(part)
            faults += part_faults
        else:  # outside the handler, whose traceback holds on to the tensors
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            batch.shrink(len(prompts[chosen]), cause)
    return np.concatenate(images), faults
