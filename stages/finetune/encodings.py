"""Latents and text embeddings of a training set, computed once by the frozen networks.

For each crop of each slice the posterior's mean and standard deviation are kept, not one sample of
it, and the trainer draws afresh every step: a single cached sample would freeze the augmentation.
Lesion masks are scaled to the latents' grid. Entries are keyed by the networks' weights.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.files import read_arrays, read_or_make, write_arrays, write_whole
from pipeline.seeding import numpy_rng
from stages.components.diffusion.base_model import BaseModel, encode_prompts
from stages.components.diffusion.latents import encode_images
from stages.components.diffusion.text_embeddings import TextCache
from stages.components.imaging.pixels import GrayImage, RgbImage, read_image, resize, to_rgb

CROP_ZOOM = 1.125  # random crops are cut from a slice enlarged by this factor
PIXELS_PER_CELL = 8  # of SD's and SDXL's VAEs


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


def cut_crops(
    image: RgbImage, resolution: int, crops_per_image: int
) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """Cut the whole slice and `crops_per_image - 1` random crops, all `resolution` px square.

    Random crops come from the slice enlarged by `CROP_ZOOM`; their places depend on the image's
    content alone. No flips: they would make every left/right caption wrong; mirror images are
    encoded apart, and have captions of their own.

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


def _write_moments(
    entry: Path, vae: Any, image: GrayImage | RgbImage, resolution: int, crops_per_image: int
) -> None:
    views, places = cut_crops(to_rgb(image), resolution, crops_per_image)
    mean, std = encode_images(vae, views)
    write_arrays(entry, mean=mean.numpy(), std=std.numpy(), crops=np.asarray(places))


def _read_moments(entry: Path) -> list[Tensor]:
    arrays = read_arrays(entry)
    return [torch.from_numpy(arrays[name]) for name in ("mean", "std", "crops")]


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


def cache_texts(base: BaseModel, texts: Sequence[str], cache_dir: Path) -> TextCache:
    """Encode texts that no run has encoded before, and read the others from `cache_dir`.

    An entry is keyed by the encoders' weights, their dtype and the text's tokens, and depends on
    nothing else: each text is encoded by itself, so no neighbour changes its last bits.
    """
    folder = cache_dir / "texts" / encoders_digest(base)[:16]
    distinct = sorted(set(texts))
    rows: list[dict[str, Tensor]] = []
    for text in distinct:
        entry = folder / f"{token_digest(base, text)}.safetensors"
        rows.append(read_or_make(entry, _read_embeddings, partial(_encode, entry, base, text)))
    pooled = [row["pooled"] for row in rows if "pooled" in row]
    return TextCache(
        index={text: row for row, text in enumerate(distinct)},
        prompt_embeds=torch.stack([row["prompt_embeds"] for row in rows]),
        pooled=torch.stack(pooled) if pooled else None,
    )


def _encode(entry: Path, base: BaseModel, text: str) -> None:
    from safetensors.torch import save_file

    with torch.no_grad():
        made = encode_prompts(base, [text])
    tensors = {"prompt_embeds": made.prompt_embeds[0].cpu().contiguous()}
    if made.pooled is not None:
        tensors["pooled"] = made.pooled[0].cpu().contiguous()
    write_whole(entry, partial(save_file, tensors))


def _read_embeddings(entry: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(entry)
    if "prompt_embeds" not in tensors:
        raise ValueError(f"no prompt_embeds among {sorted(tensors)}")
    return tensors


def weights_digest(network: nn.Module, settings: Mapping[str, Any]) -> str:
    """Identify a network by its weights and settings, wherever its folder lies."""
    public = {key: value for key, value in settings.items() if not key.startswith("_")}
    digest = hashlib.sha256(repr(sorted(public.items())).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encoders_digest(base: BaseModel) -> str:
    """Identify the text encoders by settings, weights and dtype, wherever their folder lies."""
    parts = [base.family, str(base.zeros_for_empty)]
    for encoder in base.text_encoders:
        parts += [
            weights_digest(encoder, settings_of(encoder)),
            str(next(encoder.parameters()).dtype),
        ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def settings_of(encoder: nn.Module) -> dict[str, Any]:
    """Return an encoder's settings without those that name folders and versions."""
    config: Any = encoder.config
    settings: dict[str, Any] = config.to_dict()
    return {k: v for k, v in settings.items() if not k.startswith("_") and "version" not in k}


def token_digest(base: BaseModel, text: str) -> str:
    """Identify a text by its tokens in every tokenizer; the empty one may mean zeros."""
    tokens = [
        tokenizer(text, truncation=True, max_length=tokenizer.model_max_length).input_ids
        for tokenizer in base.tokenizers
    ]
    return hashlib.sha256(repr((text == "", tokens)).encode()).hexdigest()
