"""Image files in class folders: `Training|Testing/CLASS/*.jpg` as on Kaggle, or `CLASS/*.jpg`.

Such folders name no subjects, so groups come from near-duplicates alone. Neighbouring slices of one
person that differ more than that cannot be told from strangers: scores on them are flattered.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from pydantic import Field

from pipeline.contracts import LABELS, Label, Section, Split
from pipeline.downloads import Download, KaggleSet
from pipeline.errors import DataError
from stages.components.imaging.scans import Scan

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
SPLIT_NAMES: dict[str, Split] = {
    "training": "train",
    "train": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "testing": "test",
    "test": "test",
}
CLASS_NAMES: dict[str, Label] = {
    "no": "notumor",
    "normal": "notumor",
    "healthy": "notumor",
    "glioma": "glioma",
    "meningioma": "meningioma",
    "pituitary": "pituitary",
}


class Settings(Section):
    """Where the folders are, and what they are called."""

    root: Path
    kaggle: str | None = None  # OWNER/NAME/versions/N: what `mrisynth fetch data` puts at `root`
    class_names: dict[str, Label] = Field(default_factory=dict)  # further folder names


def iter_scans(settings: Settings, *, seed: int, cache_dir: Path) -> Iterator[Scan]:
    """Yield every image file, in order of its path; the seed and the cache are not used.

    Raises:
        DataError: The root is missing or empty, or a folder's name is no known class.
    """
    seen: Counter[str] = Counter()
    for label, split, folder in list(_find_classes(settings)):  # all names are checked first
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                continue
            original = path.relative_to(settings.root).as_posix()
            scan_id = _name(original)
            seen[scan_id] += 1
            if seen[scan_id] > 1:  # two suffixes, or two folders spelt alike
                scan_id += "-" + hashlib.sha256(original.encode()).hexdigest()[:8]
            yield Scan(
                scan_id=scan_id,
                subject_id=None,
                source="image_folder",
                label=label,
                published_split=split,
                path=path,
                mask_path=None,
                modality="unknown",
                location=None,
                anatomical_side=None,
                shape=None,
                original=original,
            )
    if not seen:
        raise DataError(
            f"no images under {str(settings.root)!r}; expected files ending in "
            f"{', '.join(SUFFIXES)}"
        )


def check(settings: Settings) -> list[str]:
    """Say what stands in the way, and what to do; an empty list means nothing."""
    try:
        next(iter_scans(settings, seed=0, cache_dir=settings.root))
    except DataError as error:
        return [f"preprocess.source.settings.root: {error}"]
    return []


def downloads(settings: Settings) -> list[Download]:
    """Say where the folder comes from, where the settings do."""
    return [KaggleSet(settings.kaggle, settings.root)] if settings.kaggle else []


def input_digest(settings: Settings) -> str:
    """Identify the files by their names and sizes, for freshness; none of them is opened."""
    files = [
        f"{scan.original}\x1f{scan.path.stat().st_size}"
        for scan in iter_scans(settings, seed=0, cache_dir=settings.root)
    ]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def tiny(tmp: Path) -> Settings:
    """Write three small drawings of each class and split under `tmp`, for tests."""
    for split in ("Training", "Testing"):
        for number, label in enumerate(LABELS):
            for copy in range(3):
                image = Image.new("L", (72, 64))
                seed = number * 3 + copy + (12 if split == "Testing" else 0)
                for y in range(8, 56):
                    for x in range(10 + seed % 5, 60 - seed % 7):
                        image.putpixel((x, y), 90 + (x * (seed + 3) + y * (seed % 11)) % 160)
                path = tmp / split / label / f"{split[:2]}-{label[:2]}_{copy:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    return Settings(root=tmp)


def _find_classes(settings: Settings) -> Iterator[tuple[Label, Split | None, Path]]:
    """Yield (label, published split, folder) for every class folder, sorted by path."""
    if not settings.root.is_dir():
        raise DataError(
            f"no folder {str(settings.root)!r}; put the images there as Training/CLASS/*.jpg and "
            "Testing/CLASS/*.jpg, or as CLASS/*.jpg, or set preprocess.source.settings.root"
        )
    top = _folders(settings.root)
    splits = {folder: SPLIT_NAMES.get(folder.name.lower()) for folder in top}
    if any(splits.values()):
        strangers = [folder.name for folder, split in splits.items() if split is None]
        if strangers:
            raise DataError(
                f"{str(settings.root)!r} holds folders of splits, but also {strangers}; expected "
                f"names among {sorted(SPLIT_NAMES)}. Move them elsewhere"
            )
        parents: list[tuple[Path, Split | None]] = list(splits.items())
    else:
        parents = [(settings.root, None)]
    for parent, split in parents:
        for folder in _folders(parent):
            yield _label_of(folder, parent, settings), split, folder


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _label_of(folder: Path, parent: Path, settings: Settings) -> Label:
    named = {name.lower(): label for name, label in settings.class_names.items()}
    if folder.name.lower() in named:
        return named[folder.name.lower()]
    # "no_tumor", "notumor" and "No tumour" become "no"; "glioma_tumor" becomes "glioma".
    bare = re.sub(r"tumou?rs?$", "", re.sub(r"[^a-z]", "", folder.name.lower()))
    if bare not in CLASS_NAMES:
        raise DataError(
            f"folder {folder.name!r} in {str(parent)!r} is no known class; found "
            f"{[f.name for f in _folders(parent)]}, expected {list(LABELS)} or the like. "
            "Rename it, or map it in preprocess.source.settings.class_names"
        )
    return CLASS_NAMES[bare]


def _name(original: str) -> str:
    """Turn a relative path into a file name: `Training/glioma/a 1.jpg` to `Training-glioma-a_1`."""
    stem = original.rpartition(".")[0].replace("/", "-")
    return re.sub(r"[^A-Za-z0-9._-]", "_", stem)
