from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from stages.components.imaging import scans
from stages.components.imaging.scans import (
    DEPTHS,
    Scan,
    core_of,
    cut_plane,
    read_planes,
    read_volume,
)

SPACING = (2.0, 2.0, 2.0)


def make_scan(path, mask_path=None, label="notumor", **facts):
    values = {
        "scan_id": "s", "subject_id": "p", "source": "x", "published_split": None,
        "modality": "t1", "location": None, "anatomical_side": None, "shape": None,
        "original": Path(path).name,
    }  # fmt: skip
    return Scan(path=Path(path), mask_path=mask_path, label=label, **{**values, **facts})


def make_head(shape=(70, 90, 80), radii=(30, 40, 35)):
    """A ball of a head (RAS) on air, with ramps along i, j, k so that any turn shows."""
    centre = np.array(shape)[:, None, None, None] / 2 - 0.5
    offset = np.mgrid[: shape[0], : shape[1], : shape[2]] - centre
    inside = np.sqrt(((offset / np.array(radii)[:, None, None, None]) ** 2).sum(0)) <= 1
    values = 300 + 2 * offset[0] + offset[1] + 1.5 * offset[2]
    return np.where(inside, values, 0).astype(np.float32)


def save(path, values, spacing=SPACING, codes="RAS"):
    affine = np.diag([*spacing, 1.0])
    image = nib.nifti1.Nifti1Image(values, affine)
    to = nib.orientations.axcodes2ornt(codes)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), to)
    nib.save(image.as_reoriented(turn), path)
    return path


@pytest.fixture
def tumor(tmp_path):
    """A volume with a tumour at the patient's left, behind the middle; 15 voxels wide."""
    values = make_head()
    mask = np.zeros(values.shape, np.uint8)
    mask[12:27, 30:45, 38:53] = 2
    mask[10:29, 28:47, 36:55] |= 1  # a rim of oedema; 2 | 1 = 3 in the core
    return make_scan(
        save(tmp_path / "v.nii.gz", values), save(tmp_path / "m.nii.gz", mask), "glioma"
    )


def test_an_image_file_is_its_own_plane(tmp_path):
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(tmp_path / "a.png")
    (plane,) = read_planes(make_scan(tmp_path / "a.png"), 4, np.random.default_rng(0))
    assert plane.image.shape == (20, 30) and plane.orientation == "unknown" and plane.mask is None


def test_planes_hang_as_radiologists_hang_them():
    volume = np.zeros((4, 5, 6), np.uint8)
    volume[3] = 100  # patient's right
    volume[:, 4] += 50  # anterior
    volume[:, :, 5] += 7  # top
    axial = cut_plane(volume, None, SPACING, "axial", 0).image
    assert axial.shape == (5, 4)
    assert axial[0, 0] == 150 and axial[-1, 0] == 100 and axial[0, -1] == 50
    coronal = cut_plane(volume, None, SPACING, "coronal", 0).image
    assert coronal.shape == (6, 4)
    assert coronal[0, 0] == 107 and coronal[-1, 0] == 100 and coronal[0, -1] == 7
    sagittal = cut_plane(volume, None, SPACING, "sagittal", 0).image
    assert sagittal.shape == (6, 5)
    assert sagittal[0, 0] == 57 and sagittal[-1, 0] == 50 and sagittal[0, -1] == 7


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "PIR"])
def test_any_stored_orientation_gives_the_same_planes(tmp_path, codes):
    values = make_head()
    stored = make_scan(save(tmp_path / f"{codes}.nii.gz", values, (1.0, 2.0, 3.0), codes))
    plain = make_scan(save(tmp_path / "v.nii.gz", values, (1.0, 2.0, 3.0)))
    found = read_planes(stored, 3, np.random.default_rng(4))
    expected = read_planes(plain, 3, np.random.default_rng(4))
    for one, other in zip(found, expected, strict=True):
        assert one.orientation == other.orientation and one.index == other.index
        assert np.array_equal(one.image, other.image)


def test_pixels_become_square():
    volume = np.zeros((20, 30, 10), np.uint8)
    volume[5:15, 5:25, 2:8] = 200
    mask = (volume > 0).astype(np.uint8) * 3
    plane = cut_plane(volume, mask, (1.0, 1.0, 4.0), "coronal", 15)
    assert plane.image.shape == plane.mask.shape == (40, 20)
    assert set(np.unique(plane.mask)) == {0, 3}
    assert (plane.mask > 0).sum() == 10 * 24


def test_a_tumor_is_on_every_plane_of_its_scan(tumor):
    for seed in range(10):
        planes = read_planes(tumor, 6, np.random.default_rng(seed))
        assert sorted(p.orientation for p in planes) == sorted(["axial", "coronal", "sagittal"] * 2)
        for plane in planes:
            assert np.count_nonzero(plane.mask >= 2) >= 0.3 * 15 * 15
            assert plane.image.shape == plane.mask.shape


def test_a_patients_left_is_the_images_right(tumor):
    for plane in read_planes(tumor, 6, np.random.default_rng(0)):
        _, columns = np.nonzero(plane.mask)
        middle = plane.image.shape[1] / 2
        if plane.orientation != "sagittal":
            assert columns.min() > middle
        else:
            assert columns.mean() > middle  # behind the middle: anterior is on the left


def test_planes_repeat_with_the_seed_and_differ_otherwise(tumor):
    def draw(seed):
        planes = read_planes(tumor, 6, np.random.default_rng(seed))
        return [(p.orientation, p.index) for p in planes]

    assert draw(1) == draw(1) and draw(1) != draw(2)
    assert len(set(draw(1))) == 6


def test_a_small_tumor_gives_no_plane_twice(tmp_path):
    values = make_head()
    mask = np.zeros(values.shape, np.uint8)
    mask[30:32, 40:42, 40:42] = 2
    scan = make_scan(save(tmp_path / "v.nii", values), save(tmp_path / "m.nii", mask), "pituitary")
    planes = read_planes(scan, 12, np.random.default_rng(0))
    assert len(planes) == 6 == len({(p.orientation, p.index) for p in planes})


def test_planes_without_a_tumor_lie_where_tumors_would(tmp_path):
    scan = make_scan(save(tmp_path / "v.nii", make_head()))
    found = {name: [] for name in scans.AXES}
    for seed in range(40):
        for plane in read_planes(scan, 3, np.random.default_rng(seed)):
            found[plane.orientation].append(plane.index)
    for orientation, axis in scans.AXES.items():
        low, high = (5, 65) if axis == 0 else (5, 85) if axis == 1 else (5, 75)
        shares = (np.array(found[orientation]) - low) / (high - low)
        deciles = np.array([DEPTHS[label][orientation] for label in sorted(DEPTHS)])
        assert shares.min() >= deciles.min() - 0.05 and shares.max() <= deciles.max() + 0.05
        assert len(set(found[orientation])) > 8


def test_depths_are_deciles_of_every_tumor_class_and_plane():
    assert sorted(DEPTHS) == ["glioma", "meningioma", "pituitary"]
    for planes in DEPTHS.values():
        assert sorted(planes) == sorted(scans.AXES)
        for deciles in planes.values():
            assert len(deciles) == 11 and list(deciles) == sorted(deciles)
            assert deciles[0] >= 0 and deciles[-1] <= 1


def test_thick_slices_are_not_cut_across(tmp_path):
    values = make_head()[:, :, ::8][:, :, :10]
    values = np.pad(values, ((0, 0), (0, 0), (4, 4)))
    scan = make_scan(save(tmp_path / "v.nii", values, (1.0, 1.0, 8.0)))
    planes = read_planes(scan, 3, np.random.default_rng(0))
    assert {p.orientation for p in planes} == {"axial"}


def test_a_trailing_axis_of_one_is_dropped(tmp_path):
    save(tmp_path / "v.nii", make_head()[..., None])
    assert read_volume(tmp_path / "v.nii")[0].shape == (70, 90, 80)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((20, 20, 20, 3), np.float32), r"shape \(20, 20, 20, 3\)"),
        (np.zeros((20, 20, 4), np.float32), r"shape \(20, 20, 4\)"),
        (np.full((20, 20, 20), 5, np.float32), "all intensities are about 5"),
        (np.full((20, 20, 20), np.nan, np.float32), "8000 NaN or infinite voxels"),
    ],
)
def test_unusable_volumes_are_refused_with_the_reason(tmp_path, values, reason):
    scan = make_scan(save(tmp_path / "bad.nii.gz", values))
    with pytest.raises(DataError, match=f"bad.nii.gz.*{reason}"):
        read_planes(scan, 3, np.random.default_rng(0))


def test_files_that_are_no_volumes_are_refused(tmp_path):
    (tmp_path / "text.nii.gz").write_text("no")
    whole = save(tmp_path / "cut.nii", make_head()).read_bytes()
    (tmp_path / "cut.nii").write_bytes(whole[:5000])
    nib.save(nib.nifti2.Nifti2Image(make_head(), np.eye(4)), tmp_path / "two.nii")
    nib.save(nib.freesurfer.mghformat.MGHImage(make_head(), np.eye(4)), tmp_path / "other.mgz")
    (tmp_path / "other.mgz").rename(tmp_path / "other.nii.mgz")
    for name, reason in [
        ("text.nii.gz", "cannot be read"),
        ("cut.nii", "cannot be read"),
        ("absent.nii", "does not exist"),
        ("other.nii.mgz", "is MGHImage, not NIfTI"),
    ]:
        with pytest.raises(DataError, match=f"{name}.*{reason}"):
            read_volume(tmp_path / name)
    assert read_volume(tmp_path / "two.nii")[0].shape == (70, 90, 80)


def test_an_affine_without_an_inverse_is_refused(tmp_path):
    raw = bytearray(save(tmp_path / "flat.nii", make_head()).read_bytes())
    raw[280:296] = bytes(16)  # srow_x
    raw[252:256] = bytes([0, 0, 1, 0])  # qform_code 0, sform_code 1
    (tmp_path / "flat.nii").write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"flat.nii.*affine that cannot be inverted"):
        read_volume(tmp_path / "flat.nii")


def test_masks_must_fit_their_volume_and_label(tmp_path):
    volume = save(tmp_path / "v.nii", make_head())
    small = save(tmp_path / "small.nii", np.ones((30, 30, 30), np.uint8))
    with pytest.raises(DataError, match=r"small.nii' \(30, 30, 30\) does not lie on the grid"):
        read_planes(make_scan(volume, small, "glioma"), 1, np.random.default_rng(0))
    empty = save(tmp_path / "empty.nii", np.zeros((70, 90, 80), np.uint8))
    with pytest.raises(DataError, match=r"empty.nii' is empty, but its label is 'glioma'"):
        read_planes(make_scan(volume, empty, "glioma"), 1, np.random.default_rng(0))


def test_the_core_counts_and_else_whatever_is_marked():
    mask = np.array([[0, 1], [2, 3]], np.uint8)
    assert core_of(mask).tolist() == [[False, False], [True, True]]
    assert core_of(np.minimum(mask, 1)).tolist() == [[False, True], [True, True]]
