"""Made-up subjects, written as NIfTI volumes with a lesion mask and read back like clinical data.

Class and contrast form a full factorial over consecutive subjects, and the plane is chosen later
without regard to either, so no shortcut leads from one to another. Each subject lies in a folder of
the cache named by all that made it, and is made once.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydantic import Field, field_validator

from pipeline.contracts import LABELS, Label, Licence, Modality, Part, Section
from pipeline.errors import DataError
from pipeline.files import fingerprint, is_unchanged, publish_folder, read_entry
from pipeline.seeding import derive_seed
from pipeline.workers import start_workers
from stages.components.imaging.scans import Scan
from stages.components.phantoms.notice import ICBM152_CITATIONS, ICBM152_NOTICE
from stages.components.phantoms.source_digest import generator_digest

SEED_LIMIT = 2**40  # the embedded models were trained on subjects from 2**40 on, never on these
SCALE = 1023  # int16 steps between 0 and 1, about what a scanner writes
COMPRESS_LEVEL = 1  # noise hardly compresses, so higher levels only cost time
WORKERS_PAY_FROM = 3  # subjects; starting processes takes about two seconds


class Settings(Section):
    """How many subjects of which kind."""

    num_subjects: int = Field(120, ge=1)
    spacing_mm: float = Field(1.5, ge=1.0, le=4.0)  # isotropic voxels
    labels: tuple[Label, ...] = Field(LABELS, min_length=1)  # take turns; repeat one to have more
    modalities: tuple[Modality, ...] = Field(("t1", "t1ce", "t2", "flair"), min_length=1)
    # brain and tumour alone, as BraTS distributes its scans; null: one subject in twelve, drawn
    skull_stripped: bool | None = None
    num_workers: int = Field(2, ge=1)  # processes

    @field_validator("modalities")
    @classmethod
    def _is_known(cls, value: tuple[Modality, ...]) -> tuple[Modality, ...]:
        if "unknown" in value:
            raise ValueError("'unknown' is no contrast that a phantom can be made in")
        return value


def identify(settings: Settings) -> Part:
    """Say that these are no patients, and whose tissue maps they are made from."""
    del settings
    return Part(
        name="phantom",
        licence=Licence(
            part="Phantoms",
            terms="Computed from the tissue maps of the ICBM 152 atlas; its notice stands below.",
            notice=ICBM152_NOTICE,
            citations=ICBM152_CITATIONS,
        ),
        slices="reference phantoms",
        limit="what patients' scans would give: the slices are computed phantoms, and scores tell "
        "how near a generator comes to phantoms.",
        convention="Slices hang as radiologists hang them: the patient's right is on the image's "
        "left.",
    )


@dataclass(frozen=True)
class SubjectOrder:
    """One subject to make."""

    subject_id: str
    seed: int
    label: Label
    modality: Modality
    spacing_mm: float
    skull_stripped: bool | None
    folder: Path

    @property
    def image_path(self) -> Path:
        """The volume."""
        return self.folder / f"{self.modality}.nii.gz"

    @property
    def mask_path(self) -> Path:
        """The lesion's labels on the same grid; all 0 without a tumour."""
        return self.folder / "mask.nii.gz"

    @property
    def facts_path(self) -> Path:
        """What the generator knows; written last, so that its presence means the rest is there."""
        return self.folder / "subject.json"


def iter_scans(settings: Settings, *, seed: int, cache_dir: Path) -> Iterator[Scan]:
    """Yield one scan a subject, made first where the cache lacks it; deterministic.

    Subjects are made in `num_workers` processes, while earlier ones are already being read.

    Raises:
        DataError: A subject cannot be put in place.
    """
    orders = plan_subjects(settings, seed, cache_dir)
    known = {
        order: read_entry(order.folder, functools.partial(_read_facts, order)) for order in orders
    }
    missing = [order for order, facts in known.items() if facts is None]
    if len(missing) < WORKERS_PAY_FROM or settings.num_workers == 1:
        for order in orders:
            make_subject(order)
            yield _to_scan(order, known[order], cache_dir)
        return
    with start_workers(settings.num_workers) as pool:
        making = {order: pool.submit(make_subject, order) for order in missing}
        for order in orders:
            if order in making:
                making[order].result()
            yield _to_scan(order, known[order], cache_dir)


def count_scans(settings: Settings) -> int:
    """Say how many scans there will be, before any is made."""
    return settings.num_subjects


def plan_subjects(settings: Settings, seed: int, cache_dir: Path) -> list[SubjectOrder]:
    """List the subjects: label and contrast by position, everything else by the subject's seed."""
    orders = []
    labels, modalities = settings.labels, settings.modalities
    for index in range(settings.num_subjects):
        label = labels[index % len(labels)]
        modality = modalities[index // len(labels) % len(modalities)]
        own_seed = derive_seed(seed, "phantom", index) % SEED_LIMIT
        look = (settings.spacing_mm, settings.skull_stripped)
        made_of = (own_seed, label, modality, *look, generator_digest())
        digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
        subject_id = f"phantom-{index:05d}"
        folder = cache_dir / digest
        orders.append(SubjectOrder(subject_id, own_seed, label, modality, *look, folder))
    return orders


def make_subject(order: SubjectOrder) -> None:
    """Write a subject's folder under a temporary name and rename it: it is whole or absent.

    Raises:
        DataError: A folder of that name holds something else.
    """
    if order.facts_path.exists():
        return
    from stages.components.phantoms.subject import build_subject  # the template takes seconds

    subject = build_subject(
        order.seed, order.label, modalities=(order.modality,), spacing_mm=order.spacing_mm,
        skull_stripped=order.skull_stripped,
    )  # fmt: skip
    order.folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{order.folder.name}-", dir=order.folder.parent))
    try:
        built = SubjectOrder(**{**asdict(order), "folder": partial})
        steps = np.rint(np.clip(subject.volumes[order.modality], 0, 1) * SCALE).astype(np.int16)
        _write_nifti(built.image_path, steps, subject.affine)
        _write_nifti(built.mask_path, subject.mask, subject.affine)
        facts = {
            "location": subject.location,
            "side": subject.side,
            "shape": subject.shape,
            "diameter_mm": subject.diameter_mm,
            "seed": order.seed,
            "label": order.label,
            "synthetic": True,
            "files": {p.name: fingerprint(p) for p in (built.image_path, built.mask_path)},
        }
        built.facts_path.write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
        _publish(partial, order)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check(settings: Settings) -> list[str]:
    """Say what stands in the way; the generator needs nothing but what is installed."""
    return []


def tiny(tmp: Path) -> Settings:
    """Return settings for tests: four coarse subjects, one of each class; `tmp` is not used."""
    return Settings(num_subjects=4, spacing_mm=4.0, num_workers=1)


def _write_nifti(path: Path, values: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]) -> None:
    image = nib.nifti1.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"synthetic phantom, no patient"
    if values.dtype == np.int16:
        image.header.set_slope_inter(1 / SCALE, 0)
    with path.open("wb") as out, gzip.GzipFile("", "wb", COMPRESS_LEVEL, out, mtime=0) as packed:
        packed.write(image.to_bytes())


def _publish(partial: Path, order: SubjectOrder) -> None:
    try:
        publish_folder(partial, order.folder)
    except OSError as error:
        if not order.facts_path.exists():  # not another process that was faster
            raise DataError(
                f"cached subject {str(order.folder)!r} cannot be put in place ({error}); delete "
                "that folder"
            ) from error


def _read_facts(order: SubjectOrder, folder: Path) -> dict[str, Any]:
    """Read what the generator knows of a subject, and check that volume and mask are as written."""
    facts: dict[str, Any] = json.loads((folder / order.facts_path.name).read_text("utf-8"))
    if "files" not in facts:
        raise ValueError("it was written before sizes and digests were kept")
    for name in (order.image_path.name, order.mask_path.name):
        if not is_unchanged(folder / name, facts["files"][name]):
            raise ValueError(f"{name} is not the file that was written")
    return {key: facts[key] for key in ("location", "side", "shape")}


def _to_scan(order: SubjectOrder, facts: Mapping[str, Any] | None, cache_dir: Path) -> Scan:
    """Describe a subject; `facts` is None where it has only now been made."""
    if facts is None:
        facts = _read_facts(order, order.folder)
    return Scan(
        scan_id=order.subject_id,
        subject_id=order.subject_id,
        source="phantom",
        label=order.label,
        published_split=None,
        path=order.image_path,
        mask_path=order.mask_path,
        modality=order.modality,
        location=facts["location"],
        anatomical_side=facts["side"],
        shape=facts["shape"],
        original=order.image_path.relative_to(cache_dir).as_posix(),
    )
