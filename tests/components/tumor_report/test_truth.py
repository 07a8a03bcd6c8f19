from pathlib import Path

import numpy as np
import pytest

from stages.components.imaging.scans import Scan
from stages.components.tumor_report.truth import build_truth, find_side, name_intensity, name_size

ROWS, COLUMNS = np.mgrid[:128, :128]
HEAD = np.hypot((ROWS - 64) / 58, (COLUMNS - 64) / 50) <= 1


def make_image(level=100):
    rng = np.random.default_rng(0)
    return np.where(HEAD, level + rng.normal(0, 4, HEAD.shape), 0).astype(np.uint8)


def disc(row, column, radius):
    return np.hypot(ROWS - row, COLUMNS - column) <= radius


def make_scan(label="glioma", **facts):
    values = {
        "scan_id": "s", "subject_id": "p", "source": "phantom", "published_split": None,
        "path": Path("v.nii"), "mask_path": Path("m.nii"), "modality": "t1ce",
        "location": "frontal lobe", "anatomical_side": "left", "shape": "oval", "original": "v.nii",
    }  # fmt: skip
    return Scan(label=label, **{**values, **facts})


def test_truth_states_every_field_of_a_tumor():
    image = make_image()
    mask = disc(50, 88, 18).astype(np.uint8)
    mask[disc(50, 88, 12)] = 2
    image[mask == 2] = 190
    truth = build_truth(make_scan(), "axial", image, mask)
    assert truth.model_dump(exclude={"general_description"}) == {
        "tumor": True, "location": "frontal lobe", "location_text": "frontal lobe",
        "side": "right", "size": "large", "shape": "oval", "intensity": "hyperintense",
        "orientation": "axial",
    }  # fmt: skip
    assert "contrast-enhanced axial" in truth.general_description
    assert "glioma" in truth.general_description


def test_truth_without_a_tumor_keeps_plane_and_description():
    truth = build_truth(make_scan("notumor"), "coronal", make_image(), None)
    assert truth.tumor is False and truth.orientation == "coronal" and truth.size is None
    assert truth == build_truth(
        make_scan("notumor"), "coronal", make_image(), np.zeros((128, 128), np.uint8)
    )


def test_no_truth_where_the_source_has_none():
    mask = disc(50, 88, 10).astype(np.uint8) * 2
    assert build_truth(make_scan(), "axial", make_image(), None) is None
    assert build_truth(make_scan(), "unknown", make_image(), mask) is None


def test_words_outside_the_closed_lists_are_no_fields():
    mask = disc(50, 88, 10).astype(np.uint8) * 2
    truth = build_truth(
        make_scan(location="left insula", shape="like a pear"), "axial", make_image(), mask
    )
    assert truth.location is None and truth.location_text == "left insula"
    assert truth.shape is None


@pytest.mark.parametrize(
    ("side", "orientation", "expected"),
    [
        ("left", "axial", "right"),
        ("right", "coronal", "left"),
        ("midline", "axial", "midline"),
        ("bilateral", "axial", "bilateral"),
        ("left", "sagittal", "unknown"),
    ],
)
def test_the_side_of_the_image_mirrors_the_patients(side, orientation, expected):
    assert find_side(side, orientation, disc(64, 64, 5), HEAD) == expected


@pytest.mark.parametrize(("column", "expected"), [(40, "left"), (64, "midline"), (90, "right")])
def test_an_unnamed_side_is_measured_against_the_heads_middle(column, expected):
    for known in (None, "unknown"):
        assert find_side(known, "axial", disc(60, column, 6), HEAD) == expected


@pytest.mark.parametrize(("radius", "expected"), [(4, "small"), (7, "medium"), (9, "large")])
def test_size_is_the_share_of_the_heads_area(radius, expected):
    # Areas of 0.5, 1.6 and 2.8 % of a head of 9,100 pixels.
    assert name_size(disc(64, 64, radius), HEAD) == expected


@pytest.mark.parametrize(
    ("level", "expected"), [(160, "hyperintense"), (104, "isointense"), (60, "hypointense")]
)
def test_intensity_is_relative_to_the_tissue_around(level, expected):
    image, core = make_image(), disc(60, 50, 9)
    image[core] = level
    assert name_intensity(image, core, core, HEAD) == expected
    brighter = (image * 1.4).clip(0, 255).astype(np.uint8)
    assert name_intensity(brighter, core, core, HEAD) == expected


def test_a_bright_rim_around_a_dark_middle_is_mixed():
    image, core = make_image(), disc(60, 50, 12)
    image[core] = 180
    image[disc(60, 50, 8)] = 40
    assert name_intensity(image, core, core, HEAD) == "mixed"


def test_intensity_does_not_fail_where_all_is_tumor():
    image = make_image()
    assert name_intensity(image, HEAD, HEAD, HEAD) in ("isointense", "hyperintense")
