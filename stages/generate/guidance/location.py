"""Guidance towards the place that a prompt asks for, by a judge that segments lesions.

The judge is a folder of weights; the embedded one knows phantoms. A guided step goes back through
the UNet too, and there and back through VAE and judge: by count of operations, not timed, about
four times a plain step at the size of SD 1.5 and `reduction: 1`, and about ten times its memory.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.contracts import Section
from stages.components.networks import weights

if TYPE_CHECKING:
    from stages.generate.guidance._universal import LocationGuidance

REMEDY = "name a judge's folder in generate.guidance.settings.judge, or leave generate.guidance out"


class Settings(Section):
    """Which judge, and how hard it pulls."""

    judge: str = "data/embedded/judge"  # folder; a relative one counts from the repository
    strength: float = Field(0.3, gt=0)  # of the clean latents' spread, at most, at each step
    share_of_steps: float = Field(0.7, gt=0, le=1)  # the first ones; the last are the model's own
    # Latents are averaged over squares of this side before the VAE decodes them for the judge: 2
    # takes a quarter of the VAE's time and memory. The judge sees images at its own size anyway.
    reduction: int = Field(1, ge=1, le=4)


def check(settings: Settings) -> list[str]:
    """Say what keeps the judge from loading; loads nothing."""
    folder = weights.local_folder(settings.judge)
    if not any(folder.glob("*.safetensors")):
        return [f"no judge in {folder} (looked for *.safetensors); {REMEDY}"]
    return []


def input_digest(settings: Settings) -> str:
    """Identify the judge's weights, for freshness."""
    return weights.digest_of(str(weights.local_folder(settings.judge)), None, None)


def load(settings: Settings, *, device: str) -> "LocationGuidance":
    """Load the judge.

    Raises:
        MissingWeightsError: It is not there; says what to do.
    """
    from stages.components.judge.network import Judge
    from stages.generate.guidance._universal import LocationGuidance

    weights.require([f"guidance/location: {line}" for line in check(settings)])
    judge = Judge.load(weights.local_folder(settings.judge), device=device)
    return LocationGuidance(
        judge=judge,
        strength=settings.strength,
        share_of_steps=settings.share_of_steps,
        image_size=judge.config.image_size,
        reduction=settings.reduction,
    )
