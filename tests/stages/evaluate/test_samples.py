from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SampleSizeError, SplitLeakError
from stages.components.statistics.cohorts import Item, choose, count_per_class, require_disjoint
from stages.evaluate.samples import FeatureSample, balance_planes, iter_noise, noise_features


def items(prefix, **counts):
    return [
        Item(f"{prefix}-{label}-{k}", Path(), label, f"{prefix}-{k}")
        for label, count in counts.items()
        for k in range(count)
    ]


def test_every_set_gives_what_the_smallest_has():
    sets = {"test": items("t", notumor=5, glioma=9), "a": items("a", notumor=7, glioma=4)}
    assert count_per_class(sets, 1000) == {"notumor": 5, "glioma": 4}


def test_a_class_that_a_set_lacks_is_left_out():
    sets = {"test": items("t", notumor=5, glioma=9), "a": items("a", glioma=4)}
    assert count_per_class(sets, 1000) == {"glioma": 4}


def test_the_cap_is_shared_by_the_classes():
    sets = {"test": items("t", notumor=50, glioma=50), "a": items("a", notumor=50, glioma=50)}
    assert count_per_class(sets, 21) == {"notumor": 10, "glioma": 10}


def test_nothing_in_common_is_refused():
    sets = {"test": items("t", notumor=5), "a": items("a", glioma=4)}
    with pytest.raises(SampleSizeError, match=r"found 0 \(images: test 5, a 4\)"):
        count_per_class(sets, 1000)


def test_choice_forgets_the_order_and_follows_the_seed():
    given = items("t", notumor=30, glioma=20)
    counts = {"notumor": 10, "glioma": 5}
    first = choose(given, counts, (0, "x"))
    assert first == choose(given[::-1], counts, (0, "x"))
    assert first != choose(given, counts, (1, "x"))
    assert [item.label for item in first] == ["notumor"] * 10 + ["glioma"] * 5
    assert len(set(first)) == 15


def test_a_smaller_choice_is_part_of_a_larger_one():
    given = items("t", notumor=30)
    few, many = (choose(given, {"notumor": n}, (0,)) for n in (5, 20))
    assert many[:5] == few


def test_sets_that_share_names_choose_the_same_of_them():
    given = items("t", notumor=30)
    whole, part = (choose(some, {"notumor": 10}, (0,)) for some in (given, given[1:]))
    assert [item for item in whole if item in given[1:]] == part[: 10 - (given[0] in whole)]


def test_a_group_in_two_splits_is_named():
    test, train = items("t", notumor=3), [*items("r", notumor=2), *items("t", glioma=1)]
    with pytest.raises(SplitLeakError, match=r"'t-0' is in both train \(1 slices\) and test \(1 "):
        require_disjoint(test, train)
    require_disjoint(test, items("r", notumor=2))


def test_planes_are_balanced_per_class_over_all_sets():
    def made(name, **planes):
        return [
            Item(f"{name}-{label}-{plane}-{k}", Path(), label, f"{name}{k}", plane)
            for label in ("notumor", "glioma")
            for plane, count in planes.items()
            for k in range(count)
        ]

    planes = balance_planes(
        {"a": made("a", axial=3, coronal=5), "b": made("b", axial=4, unknown=2)}
    )
    assert planes == {"a": {"axial": [0, 1, 2, 8, 9, 10]}, "b": {"axial": [0, 1, 2, 6, 7, 8]}}
    sample = FeatureSample({}, ("notumor",) * 6, ("g",) * 6, planes={"axial": [0, 4]})
    assert sample.rows("axial") == [0, 4]


def test_rows_of_a_class_and_of_all():
    sample = FeatureSample({}, ("notumor", "glioma", "notumor"), ("a", "b", "c"))
    assert sample.rows("notumor") == [0, 2]
    assert sample.rows("all") == [0, 1, 2]


def test_noise_is_uniform_and_does_not_depend_on_how_much_is_made():
    few, many = (list(iter_noise(n, 32, (0,))) for n in (2, 4))
    np.testing.assert_array_equal(few[1], many[1])
    pixels = np.stack(many).ravel()
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert pixels.mean() == pytest.approx(127.5, abs=3)  # standard error 0.67


def test_noise_is_made_at_the_size_of_each_network():
    class Sizes:
        name, num_features, input_size = "sizes", 1, 24
        digest = "weights"

        def __call__(self, images):
            return np.full((len(images), 1), images.shape[1], np.float32)

    assert noise_features([Sizes()], 3, (0,), batch_size=2)["sizes"].tolist() == [[24.0]] * 3
