"""A rule for copies: the first image that it is shown is one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts import Artifact, Licence, Section, SliceRecord

LICENCE = Licence(part="First", terms="Terms of the first.")


class Settings(Section):
    pass


def check(settings: Settings) -> list[str]:
    return []


class Watch:
    def __init__(self) -> None:
        self.num_seen = 0

    def find_copies(self, images: Any) -> Any:
        numbers = self.num_seen + np.arange(len(images))
        self.num_seen += len(images)
        return numbers == 0


def build(
    settings: Settings,
    preprocess: Artifact[SliceRecord],
    *,
    device: str,
    cache_dir: Path,
    progress: Callable[[str], None],
) -> Watch:
    return Watch()
