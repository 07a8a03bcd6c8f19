import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from stages.preprocess.duplicates import find_clusters, find_pairs, link_equal, take_fingerprint


def make_slice(seed, size=96):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    head = np.hypot(rows, columns / 0.8) < 0.95
    texture = ndimage.gaussian_filter(rng.normal(size=(size, size)), 7)
    texture = (texture - texture.min()) / np.ptp(texture)
    return np.where(head, 40 + 190 * texture, 0).astype(np.uint8)


def fingerprint(image, name="f"):
    return take_fingerprint(image, image, name)


def change(image):
    """The same slice brighter, blurred and noisy."""
    rng = np.random.default_rng(9)
    bright = ndimage.gaussian_filter(image.astype(float), 0.8) * 1.15 + rng.normal(
        0, 4, image.shape
    )
    return np.clip(bright, 0, 255).astype(np.uint8)


def test_copies_are_found_plain_and_mirrored_and_strangers_are_not():
    slices = [make_slice(seed) for seed in range(30)]
    slices += [change(slices[3]), np.ascontiguousarray(change(slices[5])[:, ::-1])]
    pairs = find_pairs([fingerprint(image) for image in slices], 8, 0.95)
    assert [(p.first, p.second, p.is_mirrored) for p in pairs] == [(3, 30, False), (5, 31, True)]
    assert all(p.correlation >= 0.95 and p.bits <= 8 for p in pairs)


def test_a_close_hash_alone_does_not_merge_similar_heads():
    first, second = fingerprint(make_slice(1)), fingerprint(make_slice(2))
    second = dataclasses.replace(second, phash=first.phash, phash_mirrored=first.phash_mirrored)
    assert find_pairs([first, second], 4, 0.95) == []
    assert len(find_pairs([first, second], 4, -1.0)) == 1


def test_a_high_correlation_alone_does_not_merge():
    first = fingerprint(make_slice(1))
    opposite = first.phash ^ (2**64 - 1)
    second = dataclasses.replace(first, phash=opposite, phash_mirrored=opposite)
    assert find_pairs([first, second], 4, 0.95) == []


def test_the_order_of_slices_changes_positions_only():
    slices = [make_slice(seed) for seed in range(8)]
    slices += [change(slices[2])]
    prints = [fingerprint(image) for image in slices]
    forward = find_pairs(prints, 6, 0.9)
    backward = find_pairs(prints[::-1], 6, 0.9)
    assert {(p.first, p.second) for p in forward} == {(8 - p.second, 8 - p.first) for p in backward}


def test_pixels_decide_equality_and_shape_counts():
    image = np.zeros((4, 6), np.uint8)
    flat, tall = fingerprint(image), fingerprint(image.T)
    assert flat.pixels_sha256 == fingerprint(image.copy(), "other").pixels_sha256
    assert flat.pixels_sha256 != tall.pixels_sha256


@pytest.mark.parametrize("count", [0, 1])
def test_few_slices_have_no_pairs(count):
    assert find_pairs([fingerprint(make_slice(0))] * count, 4, 0.9) == []


def test_clusters_are_connected_components():
    assert find_clusters(6, [(0, 3), (3, 5), (1, 4)]) == [0, 1, 2, 0, 1, 0]
    assert find_clusters(2, []) == [0, 1]
    assert find_clusters(0, []) == []


def test_equal_keys_are_linked_and_none_is_not():
    assert link_equal(["a", None, "b", "a", None, "a"]) == [(0, 3), (0, 5)]
