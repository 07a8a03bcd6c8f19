"""Synthetic images as DICOM: Secondary Capture objects that say that no patient was imaged.

Source: DICOM PS3.3, A.8.1 (Secondary Capture Image), C.7.6.1 (ImageType, BurnedInAnnotation),
C.8.6.1 (ConversionType SYN: synthetic image), C.12.1 (SyntheticData, since 2023).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.errors import DataError, UsageError
from stages.components.imaging.pixels import RgbImage

if TYPE_CHECKING:
    from pydicom import Dataset

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Type 2: must be there, may be empty. There is no patient, so nothing can be said of one.
EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "Laterality",
    "PatientOrientation",
)
MAX_COMMENT = 10_240  # characters of a value of VR LT
MAX_DESCRIPTION = 1_024  # of VR ST


@dataclass(frozen=True)
class MarkedImage:
    """A PNG that carries the mark `synthetic`."""

    path: Path
    pixels: RgbImage
    text: dict[str, str]  # its text chunks: prompt, seed, adapter, ...


def export_folder(folder: Path, out: Path) -> list[Path]:
    """Write each marked PNG below `folder` as `out/NAME.dcm`, one study of one series.

    UIDs are new, and derive from the images' content: exporting the same images twice gives the
    same bytes. Nothing is written unless every image can be.

    Raises:
        UsageError: `folder` is none, or something is in `out` already.
        DataError: There is no PNG, two have one name, or one is not marked as synthetic.
    """
    if not folder.is_dir():
        raise UsageError(f"export: expected a folder of synthetic images, found {str(folder)!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"export: {str(out)!r} is not empty; name another folder with --out")
    paths = sorted(folder.rglob("*.png"))
    if not paths:
        raise DataError(f"{folder} holds no PNG; name the folder of a generate artifact")
    names = [path.stem for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{folder} holds more than one image named {twice[0]!r}; export in parts")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(read_marked(path).pixels.tobytes() + path.name.encode())
    study = digest.hexdigest()
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for number, path in enumerate(paths, start=1):
        target = out / f"{path.stem}.dcm"
        build_dataset(read_marked(path), study, number).save_as(target, enforce_file_format=True)
        written.append(target)
    return written


def read_marked(path: Path) -> MarkedImage:
    """Read a PNG and its text chunks.

    Raises:
        DataError: It cannot be read, or lacks `synthetic: true`, so it may show a patient.
    """
    try:
        with Image.open(path) as image:
            image.load()
            text = {str(key): str(value) for key, value in getattr(image, "text", {}).items()}
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if text.get("synthetic") != "true":
        raise DataError(
            f"{path} is not marked as synthetic (expected the text chunk synthetic 'true', found "
            f"{text.get('synthetic')!r}); only images of `mrisynth generate` are exported"
        )
    return MarkedImage(path, pixels, text)


def build_dataset(image: MarkedImage, study: str, number: int) -> "Dataset":
    """Build the DICOM object of an image.

    Three equal channels become one (MONOCHROME2), others stay RGB; pixel values are kept.

    Args:
        image: What to show.
        study: Digest of all images of the export, behind the study's and the series' UID.
        number: Place in the series, from 1.
    """
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    pixels: Any = image.pixels
    is_grey = bool((pixels == pixels[..., :1]).all())
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = SECONDARY_CAPTURE
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[study, "instance", str(number)])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[study, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[study, "series"])
    for keyword in EMPTY:
        setattr(dataset, keyword, "")
    dataset.SyntheticData = "YES"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ConversionType = "SYN"
    dataset.Modality = "OT"
    dataset.Manufacturer = "mrisynth"
    dataset.SoftwareVersions = image.text.get("software", "unknown")[:64]
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    dataset.SeriesDescription = "synthetic, not for clinical use"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = number
    details = [
        f"{key} {image.text[key]}" for key in ("base_model", "adapter", "seed") if key in image.text
    ]
    dataset.DerivationDescription = (
        f"Synthetic: sampled from a diffusion model, no patient was imaged. {', '.join(details)}"
    )[:MAX_DESCRIPTION]
    dataset.ImageComments = image.text.get("prompt", "")[:MAX_COMMENT]
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if is_grey else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if is_grey else "RGB"
    if not is_grey:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    raw = np.ascontiguousarray(pixels[..., 0] if is_grey else pixels).tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset
