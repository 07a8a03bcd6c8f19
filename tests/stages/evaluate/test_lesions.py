from pathlib import Path

import numpy as np
import pytest

from stages.components.statistics.cohorts import Item
from stages.evaluate.lesions import SIDE, borrow_places, crop, list_lesions


def item(name, label="glioma", plane="axial"):
    return Item(name, Path(), label, name, plane)


@pytest.mark.parametrize(
    ("place", "corner"),
    [((0.5, 0.5), (20, 20)), ((0.5, 0.25), (20, 4)), ((0.0, 1.0), (0, 40)), ((1.0, 0.0), (40, 0))],
)
def test_a_crop_lies_around_its_place_and_inside_the_image(place, corner):
    rows, columns = np.mgrid[:64, :64].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=-1)
    found = crop(image, place)
    assert found.shape == (round(SIDE * 64), round(SIDE * 64), 3)
    assert tuple(found[0, 0, :2]) == corner


def test_an_image_that_is_no_square_is_padded_first_as_for_the_judge():
    image = np.full((32, 64, 3), 200, np.uint8)
    assert crop(image, (0.0, 0.5)).max() == 200  # 8 rows of 24: the padding is 16 high
    assert crop(image, (0.0, 0.5))[:16].max() == 0
    assert crop(image, (0.5, 0.5)).min() == 200


def test_images_of_a_class_with_a_tumour_are_cut():
    items = [item("a"), item("b", "notumor"), item("c", "pituitary")]
    assert [i.name for i in list_lesions(items)] == ["a", "c"]


def test_tumour_free_slices_borrow_places_of_their_orientation_in_turn():
    lesions = [item("x"), item("y", plane="coronal"), item("z")]
    places = [(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)]
    free = [item(str(k), "notumor") for k in range(3)]
    free += [item("c", "notumor", "coronal"), item("s", "notumor", "sagittal")]
    found = [(i.name, at) for i, at in borrow_places(free, lesions, places)]
    assert found == [
        ("0", (0.1, 0.1)),
        ("1", (0.3, 0.3)),
        ("2", (0.1, 0.1)),
        ("c", (0.2, 0.2)),
    ]
