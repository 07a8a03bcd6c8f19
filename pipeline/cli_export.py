"""`mrisynth export`: synthetic images in the formats that other programs read."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UsageError

HELP = "Write synthetic images as DICOM files that say what they are."


def export_command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images that `mrisynth generate` wrote.")
    ],
    dicom: Annotated[bool, typer.Option("--dicom", help="As DICOM Secondary Capture.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to; FOLDER-dicom when not given.", metavar="DIR"),
    ] = None,
) -> None:
    """Delegate to `dicom_export`."""
    from pipeline.cli import _reported

    with _reported():
        from stages.components.dicom_export import export_folder

        if not dicom:
            raise UsageError("export: expected a format, found none; formats: --dicom")
        target = out or folder.resolve().with_name(f"{folder.resolve().name}-dicom")
        typer.echo(f"{len(export_folder(folder, target))} DICOM files in {target}")
