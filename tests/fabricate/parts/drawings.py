"""A source: drawn heads of people of whom every other one has a bright spot."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.contracts import Licence, Section
from stages.components.imaging.scans import Scan

LICENCE = Licence(part="Drawings", terms="Terms of the drawings.")


class Settings(Section):
    num_people: int = 12


def iter_scans(settings: Settings, *, seed: int, cache_dir: Path) -> Iterator[Scan]:
    cache_dir.mkdir(parents=True, exist_ok=True)
    for person in range(settings.num_people):
        rng = np.random.default_rng([seed, person])
        rows, columns = np.mgrid[:64, :64]
        head = np.hypot(rows - 32, columns - 32) < 28
        coarse = np.kron(rng.integers(40, 120, (8, 8)), np.ones((8, 8)))
        image = np.where(head, coarse, 0).astype(np.uint8)
        if person % 2:
            image[20:30, 20:30] = 250
        path = cache_dir / f"{person}.png"
        Image.fromarray(image).save(path)
        yield Scan(
            scan_id=f"d{person}",
            subject_id=f"d{person}",
            source="drawings",
            label="glioma" if person % 2 else "notumor",
            published_split=None,
            path=path,
            mask_path=None,
            modality="unknown",
            location=None,
            anatomical_side=None,
            shape=None,
            original=path.name,
        )
