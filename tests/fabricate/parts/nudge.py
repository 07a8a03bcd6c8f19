"""Guidance: every prediction is moved a little, whatever the prompt asks for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.contracts import Licence, Section, TumorReport

LICENCE = Licence(part="Nudge", terms="Terms of the nudge.")


class Settings(Section):
    strength: float = 0.5


def check(settings: Settings) -> list[str]:
    return []


def input_digest(settings: Settings) -> str:
    return "no files"


class Nudge:
    def __init__(self, strength: float) -> None:
        self.strength = strength

    @contextmanager
    def steering(
        self, pipeline: Any, reports: Sequence[TumorReport], num_steps: int
    ) -> Iterator[None]:
        plain = pipeline.unet.forward
        pipeline.unet.forward = lambda *args, **given: (plain(*args, **given)[0] + self.strength,)
        try:
            yield
        finally:
            pipeline.unet.forward = plain


def load(settings: Settings, *, device: str) -> Nudge:
    return Nudge(settings.strength)
