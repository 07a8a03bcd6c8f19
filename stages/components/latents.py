"""What the frozen networks say about the training set, computed once: latents and text embeddings.

For each crop of each slice the posterior's mean and standard deviation are kept, not one sample of
it, and the trainer draws afresh every step: a single cached sample would freeze the augmentation.
Cached latents are already normalised the way the pipeline's decoding undoes it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ValueRangeError
from pipeline.files import read_arrays, read_or_make, write_arrays
from pipeline.seeding import numpy_rng
from stages.components.diffusion.base_model import BaseModel, Conditioning, encode_prompts
from stages.components.imaging.pixels import (
    GrayImage,
    RgbImage,
    read_image,
    resize,
    to_float,
    to_rgb,
)
from stages.finetune.encodings import weights_digest

CROP_ZOOM = 1.125  # random crops are cut from a slice enlarged by this factor


@dataclass(frozen=True)
class LatentCache:
    """Posterior moments of n slices, K crops each, float32 on the CPU.

    Attributes:
        mean: (n, K, channel, h, w), normalised.
        std: (n, K, channel, h, w), normalised.
        crops: int64 (n, K, 2), (top, left) in px; crop 0 is the whole slice, at (0, 0).
    """

    mean: Tensor
    std: Tensor
    crops: Tensor


@dataclass(frozen=True)
class TextCache:
    """Embeddings of the distinct captions of a set, in the compute dtype, on the CPU."""

    index: dict[str, int]
    prompt_embeds: Tensor  # (distinct, 77, width)
    pooled: Tensor | None  # (distinct, width)

    def look_up(self, texts: Sequence[str], device: torch.device) -> Conditioning:
        """Gather the embeddings of texts, (len(texts), 77, width) on `device`."""
        rows = [self.index[text] for text in texts]
        pooled = None if self.pooled is None else self.pooled[rows].to(device)
        return Conditioning(self.prompt_embeds[rows].to(device), pooled)


def encode_texts(base: BaseModel, texts: Sequence[str], batch_size: int) -> TextCache:
    """Encode each distinct text once, in batches of sorted texts; deterministic."""
    distinct = sorted(set(texts))
    parts = []
    with torch.no_grad():
        for start in range(0, len(distinct), batch_size):
            parts.append(encode_prompts(base, distinct[start : start + batch_size]))
    pooled = [part.pooled.cpu() for part in parts if part.pooled is not None]
    return TextCache(
        index={text: row for row, text in enumerate(distinct)},
        prompt_embeds=torch.cat([part.prompt_embeds.cpu() for part in parts]),
        pooled=torch.cat(pooled) if pooled else None,
    )


def normalisation(vae: Any) -> tuple[Tensor | float, Tensor | float]:
    """Return (offset, scale): normalised latents are (z - offset) * scale.

    The inverse of the pipelines' decoding: z = latents / scaling_factor, and with `latents_mean`
    and `latents_std` in the VAE's config z = latents * std / scaling_factor + mean.
    """
    config = vae.config
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return 0.0, float(config.scaling_factor)
    mean = torch.tensor(config.latents_mean, dtype=torch.float32).view(1, -1, 1, 1)
    std = torch.tensor(config.latents_std, dtype=torch.float32).view(1, -1, 1, 1)
    return mean, config.scaling_factor / std


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decode normalised latents (n, channel, h, w) as the pipelines do, in the VAE's own dtype.

    Differentiable. Returns pixels (n, 3, 8 h, 8 w), about [-1, 1] and not clipped to it.
    """
    offset, scale = (
        value.to(latents.device) if isinstance(value, Tensor) else value
        for value in normalisation(vae)
    )
    pixels: Tensor = vae.decode(latents.to(vae.dtype) / scale + offset, return_dict=False)[0]
    return pixels


def encode_images(vae: Any, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Encode (n, height, width, 3) uint8 to the normalised posterior's mean and std.

    Returns:
        Two float32 tensors (n, channel, height / 8, width / 8) on the CPU. Deterministic.

    Raises:
        ValueRangeError: The VAE gave NaN or infinity (SDXL's own VAE does in fp16).
    """
    first = next(vae.parameters())
    pixels = torch.from_numpy(to_float(images)).permute(0, 3, 1, 2).to(first.device, first.dtype)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    offset, scale = normalisation(vae)
    mean = (posterior.mean.float().cpu() - offset) * scale
    std = posterior.std.float().cpu() * scale
    if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise ValueRangeError(
            f"the VAE gave latents that are not finite, in {first.dtype}; use float32, bfloat16 or "
            "the fp16-fix VAE"
        )
    return mean, std


def cut_crops(
    image: RgbImage, resolution: int, crops_per_image: int
) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """Cut the whole slice and `crops_per_image - 1` random crops, all `resolution` px square.

    Random crops come from the slice enlarged by `CROP_ZOOM`; their places depend on the image's
    content alone. No flips: they would make every left/right caption wrong (see `mirroring`).

    Returns:
        uint8 (crops, resolution, resolution, 3) and each crop's (top, left) in px.
    """
    views, places = [resize(image, resolution)], [(0, 0)]
    if crops_per_image > 1:
        larger = resize(image, round(resolution * CROP_ZOOM))
        rng = numpy_rng("crops", hashlib.sha256(image.tobytes()).hexdigest())
        room = larger.shape[0] - resolution
        for top, left in rng.integers(0, room + 1, (crops_per_image - 1, 2)).tolist():
            views.append(larger[top : top + resolution, left : left + resolution])
            places.append((top, left))
    return np.stack(views), places


def cache_latents(
    base: BaseModel,
    paths: Sequence[Path],
    *,
    resolution: int,
    crops_per_image: int,
    is_mirrored: bool = False,
    cache_dir: Path,
    progress: Callable[[str], None],
) -> LatentCache:
    """Encode slices that no run has encoded before, and read the others from `cache_dir`.

    An entry is keyed by VAE, resolution, crops and the slice's pixels, and depends on nothing
    else: each slice is encoded by itself, so a killed run resumes to the same bytes.

    Args:
        base: Whose VAE encodes.
        paths: PNG slices, square.
        resolution: Side of the crops in px.
        crops_per_image: K; see `cut_crops`.
        is_mirrored: Encode the slices' mirror images instead.
        cache_dir: Where the `.npz` entries lie, shared by every run.
        progress: Gets a line now and then.
    """
    key = f"{weights_digest(base.vae, base.vae.config)}:{resolution}:{crops_per_image}:{CROP_ZOOM}"
    folder = cache_dir / "latents" / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, path in enumerate(paths, start=1):
        image = read_image(path)
        if is_mirrored:
            image = np.ascontiguousarray(image[:, ::-1])
        content = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        entry = folder / f"{content}.npz"
        make = partial(_write_moments, entry, base.vae, image, resolution, crops_per_image)
        rows.append(read_or_make(entry, _read_moments, make))
        if number % 500 == 0:
            progress(f"latents: {number} of {len(paths)} slices")
    mean, std, crops = (torch.stack(column) for column in zip(*rows, strict=True))
    return LatentCache(mean, std, crops.to(torch.int64))


def _write_moments(
    entry: Path, vae: Any, image: GrayImage | RgbImage, resolution: int, crops_per_image: int
) -> None:
    views, places = cut_crops(to_rgb(image), resolution, crops_per_image)
    mean, std = encode_images(vae, views)
    write_arrays(entry, mean=mean.numpy(), std=std.numpy(), crops=np.asarray(places))


def _read_moments(entry: Path) -> list[Tensor]:
    arrays = read_arrays(entry)
    return [torch.from_numpy(arrays[name]) for name in ("mean", "std", "crops")]
