import numpy as np
import pytest

from stages.components.features.cache import (
    OPEN_SHARDS,
    SHARD_ROWS,
    FeatureCache,
    image_digest,
)


def open_cache(root, digest="w"):
    return FeatureCache(root, name="net", digest=digest, input_size=8)


def rows(count, start=0):
    return {f"{k:064}": np.full(3, k, np.float32) for k in range(start, start + count)}


def test_what_is_added_is_found_by_another_process(tmp_path):
    cache = open_cache(tmp_path)
    cache.add(rows(5))
    assert cache.find(f"{3:064}") is not None
    assert not list(tmp_path.rglob("*.npz"))
    cache.flush()
    cache.flush()
    again = open_cache(tmp_path)
    assert again.find(f"{4:064}").tolist() == [4, 4, 4]
    assert again.find(f"{9:064}") is None
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_shards_are_written_as_they_fill_and_few_are_open(tmp_path):
    cache = open_cache(tmp_path)
    count = (OPEN_SHARDS + 2) * SHARD_ROWS
    for k in range(0, count, SHARD_ROWS // 2):
        cache.add(rows(SHARD_ROWS // 2, k))
    assert not cache.waiting
    assert len(list(tmp_path.rglob("*.npz"))) == OPEN_SHARDS + 2
    again = open_cache(tmp_path)
    assert [again.find(f"{k:064}")[0] for k in range(count)] == list(range(count))
    assert len(again.opened) == OPEN_SHARDS


def test_other_weights_find_nothing(tmp_path):
    cache = open_cache(tmp_path)
    cache.add(rows(2))
    cache.flush()
    assert open_cache(tmp_path, digest="other").find(f"{1:064}") is None


def test_a_digest_tells_pixels_and_shapes_apart():
    image = np.zeros((2, 8, 3), np.uint8)
    other = image.copy()
    other[0, 0, 0] = 1
    assert image_digest(image) == image_digest(image.copy())
    assert len({image_digest(x) for x in (image, other, image.reshape(8, 2, 3))}) == 3


@pytest.mark.parametrize("damage", [lambda _: b"", lambda c: c[:-30], lambda c: b"x" * len(c)])
def test_a_damaged_shard_is_a_miss_and_rewritten(tmp_path, damage, caplog):
    cache = open_cache(tmp_path)
    cache.add(rows(5))
    cache.flush()
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(damage(path.read_bytes()))
    again = open_cache(tmp_path)
    assert again.find(f"{4:064}") is None
    again.add(rows(5))
    again.flush()
    assert open_cache(tmp_path).find(f"{4:064}").tolist() == [4, 4, 4]
    (said,) = caplog.messages
    assert said.startswith(f"{path}: a damaged entry of a cache")


def test_wrong_bytes_within_a_shard_are_a_miss(tmp_path, caplog):
    """Its digests are read when the cache is opened, its features when they are asked for."""
    cache = open_cache(tmp_path)
    cache.add(rows(5))
    cache.flush()
    (path,) = tmp_path.rglob("*.npz")
    content = path.read_bytes()
    at = content.index(np.full(3, 4, np.float32).tobytes())
    again = open_cache(tmp_path)
    path.write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    assert [again.find(f"{k:064}") for k in range(5)] == [None] * 5
    assert len(caplog.messages) == 1
    assert not path.exists()


def test_a_shard_that_another_process_removed_is_a_miss(tmp_path, caplog):
    cache = open_cache(tmp_path)
    cache.add(rows(5))
    cache.flush()
    again = open_cache(tmp_path)
    next(tmp_path.rglob("*.npz")).unlink()
    assert again.find(f"{4:064}") is None
    assert caplog.messages == []
