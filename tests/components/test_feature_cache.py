import numpy as np

from stages.components import feature_cache
from stages.components.feature_cache import FeatureCache, image_digest


def open_cache(root, digest="w"):
    return FeatureCache(root, name="net", digest=digest, input_size=8)


def rows(count, start=0):
    return {f"{k:064}": np.full(3, k, np.float32) for k in range(start, start + count)}


def test_what_is_added_is_found_by_another_process(tmp_path):
    cache = open_cache(tmp_path)
    cache.add(rows(5))
    assert f"{3:064}" in cache
    assert not list(tmp_path.rglob("*.npz"))
    cache.flush()
    cache.flush()
    again = open_cache(tmp_path)
    assert again.read(f"{4:064}").tolist() == [4, 4, 4]
    assert f"{9:064}" not in again
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_shards_are_written_as_they_fill_and_few_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD_ROWS", 4)
    cache = open_cache(tmp_path)
    for k in range(0, 40, 4):
        cache.add(rows(4, k))
    assert not cache.waiting
    again = open_cache(tmp_path)
    assert [again.read(f"{k:064}")[0] for k in range(40)] == list(range(40))
    assert len(again.opened) == feature_cache.OPEN_SHARDS


def test_other_weights_find_nothing(tmp_path):
    cache = open_cache(tmp_path)
    cache.add(rows(2))
    cache.flush()
    assert f"{1:064}" not in open_cache(tmp_path, digest="other")


def test_a_digest_tells_pixels_and_shapes_apart():
    image = np.zeros((2, 8, 3), np.uint8)
    other = image.copy()
    other[0, 0, 0] = 1
    assert image_digest(image) == image_digest(image.copy())
    assert len({image_digest(x) for x in (image, other, image.reshape(8, 2, 3))}) == 3
