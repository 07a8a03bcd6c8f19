"""What a DICOM reader finds in exported images, and the command that exports them."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import DataError, UsageError
from stages.components.imaging.pixels import save_png
from stages.generate.dicom_export import EMPTY, export_folder

TEXT = {
    "synthetic": "true",
    "prompt": "tumor: yes; naïve",
    "seed": "42",
    "adapter": "abc",
    "base_model": "tiny_sdxl",
    "software": "mrisynth 0.1.0",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A grey image of an odd number of pixels, and one whose channels differ."""
    images = tmp_path / "made" / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 256, (7, 5, 1), np.uint8), 3, axis=2)
    save_png(images / "a.png", grey, TEXT)
    save_png(images / "b.png", rng.integers(0, 256, (8, 8, 3), np.uint8), TEXT | {"seed": "43"})
    return tmp_path / "made"


def test_readers_find_synthetic_secondary_captures_without_a_patient(
    folder: Path, tmp_path: Path
) -> None:
    paths = export_folder(folder, tmp_path / "out")
    assert [path.name for path in paths] == ["a.dcm", "b.dcm"]
    found = [pydicom.dcmread(path) for path in paths]
    for number, dataset in enumerate(found, start=1):
        assert dataset[0x0008, 0x001C].value == "YES"
        assert dataset.ImageType == ["DERIVED", "SECONDARY"]
        assert dataset.SOPClassUID.name == "Secondary Capture Image Storage"
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert dataset.BurnedInAnnotation == "NO"
        assert dataset.ConversionType == "SYN"
        assert dataset.ImageComments == "tumor: yes; naïve"
        assert f"base_model tiny_sdxl, adapter abc, seed {41 + number}" in (
            dataset.DerivationDescription
        )
        assert dataset.InstanceNumber == number
        assert not any(dataset[keyword].value for keyword in EMPTY)
        named = [e.keyword for e in dataset if e.keyword.startswith("Patient") and e.value]
        assert named == []
    assert len({d.SOPInstanceUID for d in found}) == 2
    assert len({(d.StudyInstanceUID, d.SeriesInstanceUID) for d in found}) == 1
    uids = {found[0].SOPInstanceUID, found[0].StudyInstanceUID, found[0].SeriesInstanceUID}
    assert len(uids) == 3
    assert all(uid.is_valid for uid in uids)


def test_pixels_are_kept(folder: Path, tmp_path: Path) -> None:
    export_folder(folder, tmp_path / "out")
    for name, kind in (("a", "MONOCHROME2"), ("b", "RGB")):
        dataset = pydicom.dcmread(tmp_path / "out" / f"{name}.dcm")
        assert dataset.PhotometricInterpretation == kind
        with Image.open(folder / "images" / f"{name}.png") as image:
            expected = np.asarray(image)
        found = dataset.pixel_array
        np.testing.assert_array_equal(found, expected[..., 0] if name == "a" else expected)


def test_same_images_give_the_same_bytes_and_others_new_uids(folder: Path, tmp_path: Path) -> None:
    first, again = export_folder(folder, tmp_path / "1"), export_folder(folder, tmp_path / "2")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    save_png(folder / "images" / "b.png", np.full((8, 8, 3), 9, np.uint8), TEXT)
    other = export_folder(folder, tmp_path / "3")
    uids = [pydicom.dcmread(paths[0]).SOPInstanceUID for paths in (first, other)]
    assert uids[0] != uids[1]


@pytest.mark.parametrize("mark", [None, "false"])
def test_unmarked_image_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, mark: Any
) -> None:
    text = {} if mark is None else {"synthetic": mark}
    save_png(folder / "real.png", np.zeros((4, 4), np.uint8), text)
    with pytest.raises(DataError, match=rf"real\.png is not marked .*found {mark!r}"):
        export_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gone"):
        export_folder(tmp_path / "gone", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no PNG"):
        export_folder(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UsageError, match=r"made' is not empty"):
        export_folder(folder, folder)
    (folder / "more").mkdir()
    save_png(folder / "more" / "a.png", np.zeros((4, 4), np.uint8), TEXT)
    with pytest.raises(DataError, match="more than one image named 'a'"):
        export_folder(folder, tmp_path / "out")
    (folder / "more" / "a.png").rename(folder / "more" / "c.png")
    (folder / "more" / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"c\.png cannot be read"):
        export_folder(folder, tmp_path / "out")


def test_command(folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app.app, ["export", "--dicom", str(folder)])
    assert done.exit_code == 0
    assert done.output == f"2 DICOM files in {folder}-dicom\n"
    assert pydicom.dcmread(f"{folder}-dicom/a.dcm").SyntheticData == "YES"
    again = runner.invoke(app.app, ["export", "--dicom", str(folder)])
    assert again.exit_code == 2
    assert "is not empty" in again.output
    other = runner.invoke(app.app, ["export", "--dicom", str(folder), "--out", str(tmp_path / "o")])
    assert other.exit_code == 0
    assert len(list((tmp_path / "o").glob("*.dcm"))) == 2
    plain = runner.invoke(app.app, ["export", str(folder)])
    assert plain.exit_code == 2
    assert "expected a format, found none; formats: --dicom" in plain.output
