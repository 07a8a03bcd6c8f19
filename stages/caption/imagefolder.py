"""Imagefolder of Hugging Face datasets: images beside a `metadata.jsonl` with their captions."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.contracts import ArtifactWriter, CaptionRecord


def link_image(source: Path, target: Path) -> None:
    """Give an image a second name; copy it where the file system cannot (or another disk)."""
    target.unlink(missing_ok=True)  # left by a run that was killed
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_imagefolder(
    records: Sequence[CaptionRecord],
    images: Mapping[str, Path],
    output: ArtifactWriter[CaptionRecord],
) -> None:
    """Write the images and `metadata.jsonl`; failed captions are left out of both."""
    with output.path("metadata.jsonl").open("w", encoding="utf-8") as out:
        for record in records:
            if record.status == "ok":
                link_image(images[record.slice_id], output.path(record.file_name))
                row = {"file_name": record.file_name, "text": record.text}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
