import numpy as np
import pytest

from pipeline.settings import EvaluateConfig
from stages.components.features.nearest import (
    SIZE_PX,
    Gallery,
    Nearest,
    Probe,
    Threshold,
    _correlate,
    _unit_images,
)
from stages.components.imaging import pixels
from stages.evaluate import copies
from stages.evaluate.scorer import Scorer

SIZE = 128


def head(seed, size=SIZE):
    """A smooth random head on black, RGB."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    inside = (x / (0.65 + 0.1 * rng.random())) ** 2 + (y / (0.75 + 0.1 * rng.random())) ** 2 < 1
    texture = ndimage.gaussian_filter(rng.normal(size=(size, size)), size / 16)
    gray = inside * np.clip(110 + 60 * texture / texture.std(), 5, 250)
    return pixels.to_rgb(gray.astype(np.uint8))


def features_of(images):
    """Coarse brightness: near for near images."""
    return np.stack([i[::16, ::16, 0].reshape(-1) for i in images]).astype(float)


def probe(images):
    from stages.components.features.extraction import to_luma

    images = list(images)
    luma = [to_luma(image, SIZE_PX).reshape(-1) for image in images]
    return Probe(features_of(images), np.stack(luma))


@pytest.fixture(scope="module")
def train():
    return [head(seed) for seed in range(40)]


@pytest.fixture(scope="module")
def gallery(train):
    return Gallery(probe(train))


@pytest.fixture(scope="module")
def held_out(gallery):
    return gallery.nearest(probe([head(seed) for seed in range(100, 160)]))


@pytest.mark.parametrize("kind", copies.PLANTED)
def test_planted_copies_are_found_and_traced(kind, train, gallery, held_out):
    rng = np.random.default_rng(0)
    sources = list(range(24))
    planted = copies.iter_planted(iter([train[row] for row in sources]), kind, rng)
    found = gallery.nearest(probe(planted))
    groups = [str(row) for row in range(40)]
    threshold = Threshold.of(held_out)
    hits = copies.is_found(threshold, found, sources, groups)
    assert hits.mean() >= copies.LEAST_RECALL


def test_sharp_slices_that_fill_the_frame_are_known_again_wherever_they_were_moved():
    from scipy import ndimage

    rng = np.random.default_rng(0)
    slices = []
    for noise in rng.normal(size=(12, SIZE, SIZE)):
        texture = ndimage.gaussian_filter(noise, 3) / 0.09 + 0.3 * noise
        gray = np.clip(120 + 40 * texture, 0, 255)
        slices.append(pixels.to_rgb(gray.astype(np.uint8)))
    gallery = Gallery(probe(slices))
    for down, across in ((1, 1), (3, -1), (-5, 6), (6, 6)):
        found = gallery.nearest(probe(copies._shift(i, down, across) for i in slices))
        assert found.by_pixels.tolist() == list(range(12))
        assert found.correlation.min() > 0.97


def test_correlation_is_pearsons_over_what_overlaps():
    rng = np.random.default_rng(0)
    first, second = (
        _unit_images(rng.integers(0, 256, (2, 4096)).astype(np.uint8)) for _ in range(2)
    )
    second[0] = 0.3 * second[0] + np.roll(first[0], (-4, 3), axis=(0, 1))
    expected = np.corrcoef(first[0][4:, :-3].ravel(), second[0][:-4, 3:].ravel())[0, 1]
    found = _correlate(first, second)
    assert found[0] == pytest.approx(expected, abs=1e-5)
    assert expected > 0.9 > 0.2 > found[1]


def test_planted_copies_are_what_they_are_called(train):
    rng = np.random.default_rng(1)
    made = {kind: next(copies.iter_planted(iter(train[:1]), kind, rng)) for kind in copies.PLANTED}
    np.testing.assert_array_equal(made["exact"], train[0])
    np.testing.assert_array_equal(made["mirrored"][:, ::-1], train[0])
    moved = [
        np.array_equal(copies._shift(train[0], down, across), made["shifted"])
        for down in range(-6, 7)
        for across in range(-6, 7)
    ]
    assert sum(moved) == 1
    assert (made["recoloured"] != train[0]).mean() > 0.2
    assert len(np.unique(made["recoloured"].reshape(-1, 3).std(axis=1) > 1)) == 2


def test_other_heads_are_not_called_copies_more_often_than_held_out_ones(gallery, held_out):
    strangers = gallery.nearest(probe([head(seed) for seed in range(300, 360)]))
    assert Threshold.of(held_out).is_copy(strangers).mean() < 0.1


def test_order_and_number_of_images_change_nothing(gallery):
    images = probe([head(seed) for seed in range(200, 206)])
    whole = gallery.nearest(images)
    turned = gallery.nearest(images.take(np.arange(6)[::-1]))
    np.testing.assert_array_equal(whole.correlation, turned.correlation[::-1])
    np.testing.assert_array_equal(whole.by_features, turned.by_features[::-1])


def test_an_image_can_leave_itself_out(train, gallery):
    alone = gallery.nearest(probe(train), leave_out=range(40))
    assert (alone.by_features != np.arange(40)).all()
    assert (alone.by_pixels != np.arange(40)).all()
    assert alone.correlation.max() < 0.95
    assert gallery.nearest(probe(train)).correlation.min() > 0.999


def test_a_black_image_is_near_to_nothing(gallery):
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    assert gallery.nearest(probe([black])).correlation[0] == pytest.approx(0, abs=1e-4)


def test_no_images_have_no_neighbours(gallery):
    nothing = Probe(np.zeros((0, 64)), np.zeros((0, 4096), np.uint8))
    assert len(gallery.nearest(nothing).distance) == 0


def nearest(distance, correlation):
    rows = np.zeros(len(distance), int)
    return Nearest(np.asarray(distance, float), rows, np.asarray(correlation, float), rows)


def test_either_space_is_enough_and_the_threshold_is_a_tail():
    held_out = nearest(np.linspace(1, 2, 101), np.linspace(0.5, 0.9, 101))
    threshold = Threshold.of(held_out)
    assert threshold == Threshold(pytest.approx(1.01), pytest.approx(0.896))
    found = nearest([0.5, 3, 3], [0.1, 0.99, 0.1])
    assert threshold.is_copy(found).tolist() == [True, True, False]
    assert (threshold.excess(found) > 1).tolist() == [True, True, False]


def test_a_share_of_planted_copies_counts_groups_and_is_never_certain():
    scorer = Scorer(EvaluateConfig(), experiment="test", seed=0)

    def share(hits, groups):
        return copies.measure_recall(
            hits, groups, num_train=7, scorer=scorer, seed_parts=(0, "test")
        )

    alone = [str(row) for row in range(100)]
    pairs = [str(row // 2) for row in range(100)]  # two slices of a subject are found together
    found, together = (share(np.arange(100) < 30, groups) for groups in (alone, pairs))
    assert found.value == together.value == 0.3
    assert found.low == pytest.approx(0.218, abs=0.01)
    assert together.high - together.low > 1.25 * (found.high - found.low)
    assert (found.n_real, found.n_synthetic, found.num_groups) == (7, 100, 100)
    none = share(np.zeros(100, bool), pairs)
    assert (none.value, none.low, none.num_groups) == (0, 0, 50)
    assert none.high == pytest.approx(0.075, abs=0.003)


def test_the_closest_pairs_come_first_with_their_slice():
    found = Nearest(
        np.array([2.0, 0.2, 2.0]),
        np.array([0, 1, 2]),
        np.array([0.1, 0.2, 0.99]),
        np.array([0, 0, 3]),
    )
    rows = copies.closest(Threshold(1.0, 0.9), found, list("xyz"), list("abcd"), 2)
    assert [(row["image"], row["train"], row["by"], row["copy"]) for row in rows] == [
        ("y", "b", "features", True),
        ("z", "d", "pixels", True),
    ]
