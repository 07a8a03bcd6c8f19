"""Captions from the ground truth that a source has (phantoms, masks): what a perfect VLM says."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.contracts import Section, SliceRecord
from pipeline.errors import DataError
from stages.components.captioning.captioner import Captioner, Failure


class Settings(Section):
    """Nothing to set."""


class TruthCaptioner:
    """States the truth of every slice as JSON, the form a constrained VLM answers in."""

    batch_size = 256

    def describe(
        self, slices: Sequence[SliceRecord], image_paths: Sequence[Path]
    ) -> Sequence[str | Failure]:
        """Return `SliceRecord.truth` as JSON; the images are not opened.

        Raises:
            DataError: A slice has no ground truth.
        """
        return [_state(item) for item in slices]


def load(settings: Settings) -> Captioner:
    """Build the captioner; there is nothing to load."""
    return TruthCaptioner()


def _state(item: SliceRecord) -> str:
    if item.truth is None:
        raise DataError(
            f"slice {item.slice_id!r} of source {item.source!r} has no ground truth; "
            "caption.vlm 'truth' needs a source that has it, such as 'phantom'"
        )
    return item.truth.model_dump_json(exclude_none=True)
