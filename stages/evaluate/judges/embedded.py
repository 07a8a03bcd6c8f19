"""The judge of phantoms that lies in `data/embedded`, trained on masks of other phantoms."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.contracts import SPLITS, Artifact, Context, Section, SliceRecord
from stages.components.networks.weights import digest_of, local_folder, missing_files

if TYPE_CHECKING:
    from stages.components.judge.network import Judge

SOURCE = "phantom"  # the only one that it knows
CHECKED_ON = SPLITS  # real slices that tell its accuracy: none of them trained it


class Settings(Section):
    """Where the judge lies; a relative folder counts from the repository."""

    model: str = "data/embedded/judge"


def input_digest(settings: Settings) -> str:
    """Identify the weights, so that other ones make other scores."""
    return digest_of(settings.model, None, None)


def refuse(settings: Settings, slices: Sequence[SliceRecord]) -> str | None:
    """Say why these slices cannot be judged; None where they can."""
    others = sorted({item.source for item in slices} - {SOURCE})
    if others:
        return (
            f"the embedded judge knows phantoms only, found slices of {', '.join(others)}; set "
            "evaluate.judge: train"
        )
    folder = local_folder(settings.model)
    lacking = missing_files(folder, [""], None) if folder.is_dir() else [settings.model]
    if lacking:
        return (
            f"the judge is missing ({', '.join(lacking)}); make it with: mrisynth embedded build "
            "judge"
        )
    return None


def obtain(
    settings: Settings, preprocess: Artifact[SliceRecord], folder: Path, context: Context
) -> "Judge":
    """Load the judge; of the context only `device` matters.

    Raises:
        MissingWeightsError: It is not there, or damaged.
    """
    from stages.components.judge.network import Judge

    return Judge.load(local_folder(settings.model), context.device)
