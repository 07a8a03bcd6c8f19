"""Copies of one slice: identical bytes, identical pixels, and near-duplicates, mirrored or not.

A near-duplicate needs both a close perceptual hash and a high correlation of thumbnails: brains
look alike, so the hash alone would merge strangers. Mirrored copies count, since the published
Kaggle slices hold about as many of them as plain ones. Everything runs on slices already cropped to
the head, so padding and size do not hide a copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.components.imaging.pixels import GrayImage, resize

HASH_PX = 32  # what a 64-bit pHash is computed from
THUMBNAIL_PX = 64
BLOCK = 512  # rows of the pairwise comparison held at once
PAIRS_BLOCK = 4096


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of one slice.

    Attributes:
        file_sha256: of the source file's bytes; the same for all planes of a volume.
        pixels_sha256: of the decoded pixels and their shape, before any crop.
        phash, phash_mirrored: 64-bit perceptual hashes of the prepared slice and its mirror image.
        thumbnail: uint8 (THUMBNAIL_PX, THUMBNAIL_PX) of the prepared slice.
    """

    file_sha256: str
    pixels_sha256: str
    phash: int
    phash_mirrored: int
    thumbnail: GrayImage


@dataclass(frozen=True)
class NearDuplicate:
    """Two near-duplicates by their positions, `first` < `second`."""

    first: int
    second: int
    bits: int
    correlation: float
    is_mirrored: bool


def take_fingerprint(decoded: GrayImage, prepared: GrayImage, file_sha256: str) -> Fingerprint:
    """Fingerprint a slice from its decoded pixels and its prepared form; deterministic.

    Source of the hash: the `imagehash` package's pHash (DCT of 32 x 32, median of the low 8 x 8).
    """
    digest = hashlib.sha256(repr(decoded.shape).encode())
    digest.update(np.ascontiguousarray(decoded).tobytes())
    small = resize(prepared, HASH_PX)
    return Fingerprint(
        file_sha256=file_sha256,
        pixels_sha256=digest.hexdigest(),
        phash=_phash(small),
        phash_mirrored=_phash(np.ascontiguousarray(small[:, ::-1])),
        thumbnail=resize(prepared, THUMBNAIL_PX),
    )


def _phash(small: GrayImage) -> int:
    return int(str(imagehash.phash(Image.fromarray(small))), 16)


def find_pairs(
    fingerprints: Sequence[Fingerprint], max_bits: int, min_correlation: float
) -> list[NearDuplicate]:
    """List the near-duplicates: hashes within `max_bits` and correlation of at least the minimum.

    Correlation is Pearson's over the pixels of the thumbnails; a constant thumbnail correlates with
    nothing. A pair that matches both plainly and mirrored counts as plain. Sorted by position.
    """
    if len(fingerprints) < 2:
        return []
    thumbnails = np.stack([f.thumbnail for f in fingerprints])
    plain = _standardise(thumbnails)
    mirrored = _standardise(thumbnails[:, :, ::-1])
    pairs: dict[tuple[int, int], NearDuplicate] = {}
    for is_mirrored, other in ((False, plain), (True, mirrored)):
        for first, second, bits in _close_hashes(fingerprints, max_bits, is_mirrored):
            for at in range(0, len(first), PAIRS_BLOCK):
                part = slice(at, at + PAIRS_BLOCK)
                values = np.einsum("pd,pd->p", plain[first[part]], other[second[part]])
                for i, j, b, c in zip(first[part], second[part], bits[part], values, strict=True):
                    if c >= min_correlation:
                        key = (int(i), int(j))
                        pairs.setdefault(key, NearDuplicate(*key, int(b), float(c), is_mirrored))
    return [pairs[key] for key in sorted(pairs)]


def _standardise(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(norms, 1e-6), dtype=np.float32)


def _close_hashes(
    fingerprints: Sequence[Fingerprint], max_bits: int, is_mirrored: bool
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint8]]]:
    hashes = np.array([f.phash for f in fingerprints], dtype=np.uint64)
    others = hashes
    if is_mirrored:
        others = np.array([f.phash_mirrored for f in fingerprints], dtype=np.uint64)
    for start in range(0, len(hashes), BLOCK):
        bits = np.bitwise_count(hashes[start : start + BLOCK, None] ^ others[None])
        first, second = np.nonzero(bits <= max_bits)
        ahead = second > first + start
        first, second = first[ahead], second[ahead]
        yield first + start, second, bits[first, second]


def find_clusters(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """Number the connected components of `count` items under `links`, in order of first member."""
    if count == 0:
        return []
    ends = np.array(links, dtype=np.intp).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(int(label), len(numbers)) for label in labels]


def link_equal(keys: Sequence[str | None]) -> list[tuple[int, int]]:
    """Link every item to the first one with the same key; None links to nothing."""
    first: dict[str, int] = {}
    links = []
    for index, key in enumerate(keys):
        if key is not None and first.setdefault(key, index) != index:
            links.append((first[key], index))
    return links
