"""A VLM that says the same of every slice."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.contracts import Licence, Part, Section, SliceRecord


class Settings(Section):
    side: str = "left"


def identify(settings: Settings) -> Part:
    return Part(name="Parrot of the left", licence=Licence(part="Parrot", terms="Seeds, weekly."))


class Parrot:
    batch_size = 4

    def __init__(self, side: str) -> None:
        self.side = side

    def describe(self, slices: Sequence[SliceRecord], image_paths: Sequence[Path]) -> list[str]:
        return [f"tumor: yes; location: {self.side}; size: small"] * len(slices)


def load(settings: Settings) -> Parrot:
    return Parrot(settings.side)
