"""Captions made elsewhere, from a JSON Lines file of `{"file_name", "text"}` objects."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.contracts import Part, Section, SliceRecord
from pipeline.errors import DataError
from stages.components.captioning.caption_files import read_captions
from stages.components.captioning.captioner import Captioner, Failure
from stages.components.captioning.names import STUDY, find_study


class Settings(Section):
    """Where the captions are; keys beside `file_name` and `text` are ignored."""

    path: Path


class PrecomputedCaptioner:
    """Looks captions up by the name of the slice's source file.

    A caption belongs to a slice when their relative paths are the same up to the suffix, or else
    when both have the same stem and the file has no second one of it.
    """

    batch_size = 256

    def __init__(self, captions: dict[str, str], path: Path) -> None:
        self.path = path
        self.by_name = {_name(name): text for name, text in captions.items()}
        stems = Counter(PurePosixPath(name).name for name in self.by_name)
        self.by_stem = {
            stem: text
            for name, text in self.by_name.items()
            if stems[stem := PurePosixPath(name).name] == 1
        }

    def describe(
        self, slices: Sequence[SliceRecord], image_paths: Sequence[Path]
    ) -> Sequence[str | Failure]:
        """Return the caption of each slice; the images are not opened."""
        return [self._look_up(item.original) for item in slices]

    def _look_up(self, original: str) -> str | Failure:
        name = _name(original)
        text = self.by_name.get(name, self.by_stem.get(PurePosixPath(name).name))
        return Failure(f"no caption in {self.path.name}") if text is None else text


def load(settings: Settings) -> Captioner:
    """Read the whole file.

    Raises:
        DataError: The file is missing, a line is not an object with the two texts, or two lines
            give one file different captions.
    """
    problems = check(settings)
    if problems:
        raise DataError(problems[0])
    return PrecomputedCaptioner(read_captions(settings.path), settings.path)


def check(settings: Settings) -> list[str]:
    """Say what stands in the way, and what to do; an empty list means nothing."""
    if settings.path.exists():
        return []
    return [
        f"path: no file {str(settings.path)!r}; expected JSON Lines of "
        '{"file_name": "Training/glioma/Tr-gl_0010.jpg", "text": "tumor: yes; ..."}. '
        "Put it there, name another, or choose another caption.vlm"
    ]


def identify(settings: Settings) -> Part:
    """Name the captions after their file; the study's captioners brought their terms along."""
    study = find_study(settings.path.name)
    licence = None if study is None else STUDY[study]
    return Part(name=settings.path.stem, licence=licence, study=study)


def input_digest(settings: Settings) -> str:
    """Identify the captions, for freshness: an edited file is another input (SHA-256).

    Raises:
        DataError: The file is missing.
    """
    problems = check(settings)
    if problems:
        raise DataError(problems[0])
    return hashlib.sha256(settings.path.read_bytes()).hexdigest()


def _name(path: str) -> str:
    """Return a relative path with forward slashes and without its suffix."""
    posix = PurePosixPath(path.replace("\\", "/"))
    return (posix.parent / posix.stem).as_posix()
