import numpy as np
import pytest

from pipeline.contracts import SliceRecord
from pipeline.errors import TrainingError
from stages.classify.classifiers import always_tumor, intensity_only, metadata_only


def record(k, width=512, height=512):
    return SliceRecord(
        slice_id=f"s{k}",
        subject_id=None,
        group_id=f"g{k}",
        source="test",
        split="train",
        label="glioma",
        image_path=f"{k}.png",
        original=f"{k}.jpg",
        original_width_px=width,
        original_height_px=height,
    )


IS_TUMOR = np.arange(40) % 2 == 0
BLANK = np.zeros((40, 8, 8), np.uint8)


def brightness(n, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 100, (n, 8, 8))
    images[::2] += 60
    return images.astype(np.uint8)


def test_an_exact_size_gives_the_class_away():
    # Every tumour is 512 x 512, the others spread around it: no line divides them.
    sizes = [(512, 512) if k % 2 == 0 else (400 + 17 * k, 640 - 9 * k) for k in range(40)]
    records = [record(k, *size) for k, size in enumerate(sizes)]
    predict = metadata_only.fit(records=records, images=BLANK, targets=IS_TUMOR.astype(int))
    assert ((predict(records, BLANK)[:, 1] >= 0.5) == IS_TUMOR).all()


def test_sizes_that_are_all_alike_say_nothing():
    records = [record(k) for k in range(40)]
    predict = metadata_only.fit(records=records, images=BLANK, targets=IS_TUMOR.astype(int))
    assert predict(records, BLANK) == pytest.approx(np.full((40, 2), 0.5), abs=1e-6)


def test_metadata_never_looks_at_pixels():
    records = [record(k, 300 + 10 * k, 300) for k in range(40)]
    predict = metadata_only.fit(records=records, images=BLANK, targets=IS_TUMOR.astype(int))
    assert (predict(records, BLANK) == predict(records, brightness(40))).all()


def test_brightness_gives_the_class_away():
    records = [record(k) for k in range(40)]
    predict = intensity_only.fit(
        records=records, images=brightness(40), targets=IS_TUMOR.astype(int)
    )
    found = predict(records, brightness(40, seed=1))[:, 1] >= 0.5
    assert (found == IS_TUMOR).all()


def test_the_four_statistics_stand_first():
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    found = intensity_only.describe([record(0)], image)
    assert found.shape == (1, 14)
    expected = [image.mean(), image.std(), np.median(image), np.percentile(image, 95)]
    assert found[0, :4] * 255 == pytest.approx(expected)


@pytest.mark.parametrize("plugin", [metadata_only, intensity_only])
def test_one_kind_alone_is_refused(plugin):
    with pytest.raises(TrainingError, match=r"only needs slices with and without .* found 40"):
        plugin.fit(records=[record(k) for k in range(40)], images=BLANK, targets=np.ones(40, int))


def test_several_classes_give_a_column_each():
    targets = np.arange(40) % 3
    images = np.stack([np.full((8, 8), 20 + 90 * k, np.uint8) for k in targets])
    records = [record(k) for k in range(40)]
    predict = intensity_only.fit(records=records, images=images, targets=targets)
    found = predict(records, images)
    assert found.shape == (40, 3)
    assert (found.argmax(axis=1) == targets).all()


def test_always_a_tumour_of_the_commonest_class():
    records = [record(k) for k in range(40)]
    for targets, expected in ((IS_TUMOR.astype(int), [0, 1]), (np.arange(40) // 15, [0, 1, 0])):
        predict = always_tumor.fit(records=records, images=BLANK, targets=targets)
        assert (predict(records[:2], BLANK[:2]) == np.asarray([expected, expected])).all()
