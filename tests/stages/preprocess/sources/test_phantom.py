import gzip
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import DataError
from stages.components.imaging.scans import read_planes, read_volume
from stages.preprocess.sources import phantom
from stages.preprocess.sources.phantom import Settings, plan_subjects


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("phantom")


@pytest.fixture(scope="module")
def scans(cache):
    return list(phantom.iter_scans(phantom.tiny(cache), seed=0, cache_dir=cache))


def test_scans_are_nifti_with_masks_and_facts(scans, cache):
    assert [s.label for s in scans] == ["notumor", "glioma", "meningioma", "pituitary"]
    for scan in scans:
        assert scan.subject_id == scan.scan_id and (cache / scan.original) == scan.path
        values, spacing, affine = read_volume(scan.path)
        mask, _, mask_affine = read_volume(scan.mask_path)
        assert spacing == pytest.approx((4, 4, 4)) and np.allclose(affine, mask_affine)
        assert values.min() >= 0 and values.max() <= 1 and values.std() > 0.02
        assert mask.any() == (scan.label != "notumor") == (scan.location is not None)
        header = nib.nifti1.Nifti1Image.from_filename(scan.path).header
        assert header.get_data_dtype() == np.int16 and b"synthetic" in header["descrip"].tobytes()


def test_planes_can_be_cut_and_show_the_tumor(scans):
    for scan in scans:
        planes = read_planes(scan, 3, np.random.default_rng(0))
        assert planes
        assert all(p.mask.any() == (scan.label != "notumor") for p in planes)


def test_subjects_are_made_once(scans, cache):
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    again = list(phantom.iter_scans(phantom.tiny(cache), seed=0, cache_dir=cache))
    assert again == scans
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_the_same_seed_gives_the_same_bytes(scans, tmp_path):
    settings = Settings(num_subjects=2, spacing_mm=4.0, num_workers=1)
    again = list(phantom.iter_scans(settings, seed=0, cache_dir=tmp_path))
    for one, other in zip(scans, again, strict=False):
        assert one.path.read_bytes() == other.path.read_bytes()
        assert one.mask_path.read_bytes() == other.mask_path.read_bytes()
        with gzip.open(one.path) as packed:
            assert packed.read(4) == (348).to_bytes(4, "little")


def test_class_and_contrast_form_a_full_factorial(tmp_path):
    orders = plan_subjects(Settings(num_subjects=48), 0, tmp_path)
    counts = Counter((o.label, o.modality) for o in orders)
    assert len(counts) == 16 and set(counts.values()) == {3}
    assert len({o.seed for o in orders}) == 48 and max(o.seed for o in orders) < 2**40


def test_the_cache_is_addressed_by_what_makes_a_subject(tmp_path):
    def folders(seed=0, **changes):
        return [o.folder for o in plan_subjects(Settings(**changes), seed, tmp_path)]

    plain = folders(num_subjects=8)
    assert folders(num_subjects=12)[:8] == plain == folders(num_subjects=8, num_workers=1)
    assert not set(plain) & set(folders(1, num_subjects=8))
    assert not set(plain) & set(folders(num_subjects=8, spacing_mm=2.0))
    assert not set(plain) & set(folders(num_subjects=8, skull_stripped=True))


def test_skulls_are_stripped_where_asked_for(tmp_path):
    def lit(**changes):
        settings = Settings(num_subjects=2, spacing_mm=4.0, num_workers=1, **changes)
        scans = phantom.iter_scans(settings, seed=0, cache_dir=tmp_path)
        return [np.count_nonzero(read_volume(scan.path)[0] > 0.2) for scan in scans]

    for whole, brain in zip(lit(skull_stripped=False), lit(skull_stripped=True), strict=True):
        assert 0.2 < brain / whole < 0.8


def test_a_killed_run_leaves_no_half_subject(scans, tmp_path, monkeypatch):
    def fail(image):
        raise KeyboardInterrupt

    monkeypatch.setattr(nib.nifti1.Nifti1Image, "to_bytes", fail)
    with pytest.raises(KeyboardInterrupt):
        list(phantom.iter_scans(phantom.tiny(tmp_path), seed=0, cache_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["subject.json", "mask.nii.gz", "t1.nii.gz"])
@pytest.mark.parametrize("damage", [lambda _: b"", lambda c: c[: len(c) // 2], lambda _: b"{}"])
def test_a_damaged_subject_is_made_again(tmp_path, name, damage, caplog):
    settings = Settings(num_subjects=1, spacing_mm=4.0, num_workers=1)
    (scan,) = phantom.iter_scans(settings, seed=0, cache_dir=tmp_path)
    content = (scan.path.parent / name).read_bytes()
    (scan.path.parent / name).write_bytes(damage(content))
    assert list(phantom.iter_scans(settings, seed=0, cache_dir=tmp_path)) == [scan]
    assert (scan.path.parent / name).read_bytes() == content
    (said,) = caplog.messages
    assert said.startswith(f"{scan.path.parent}: a damaged entry of a cache")


def test_a_folder_in_the_way_is_named(tmp_path):
    settings = Settings(num_subjects=1, spacing_mm=4.0, num_workers=1)
    (order,) = plan_subjects(settings, 0, tmp_path)
    order.folder.mkdir()
    (order.folder / "stray").touch()
    with pytest.raises(DataError, match=f"{order.folder.name}' cannot be put in place"):
        phantom.make_subject(order)
    (order.folder / "stray").rename(order.facts_path)  # another process was faster
    phantom.make_subject(order)
    assert list(tmp_path.iterdir()) == [order.folder]


@pytest.mark.slow
def test_workers_make_the_same_subjects(scans, tmp_path):
    settings = Settings(num_subjects=4, spacing_mm=4.0, num_workers=2)
    found = list(phantom.iter_scans(settings, seed=0, cache_dir=tmp_path))
    assert [s.path.read_bytes() for s in found] == [s.path.read_bytes() for s in scans]


def test_an_unknown_contrast_is_refused():
    with pytest.raises(ValidationError, match="'unknown' is no contrast"):
        Settings(modalities=("t1", "unknown"))


def test_nothing_else_is_needed(tmp_path):
    assert phantom.check(phantom.tiny(tmp_path)) == []
