"""A judge: what is bright is a lesion."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.contracts import Artifact, Context, Licence, Section, SliceRecord

LICENCE = Licence(part="Bright", terms="Terms of the bright.")
CHECKED_ON = ("train", "val", "test")


class Settings(Section):
    pass


def refuse(settings: Settings, slices: Sequence[SliceRecord]) -> str | None:
    return None


def obtain(
    settings: Settings, preprocess: Artifact[SliceRecord], folder: Path, context: Context
) -> Any:
    from tests.components.judge.parts import Analytic

    return Analytic()
