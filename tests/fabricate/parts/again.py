"""A refiner: the base model goes on by itself."""

from typing import Any

from pipeline.contracts import Licence, Section

LICENCE = Licence(part="Again", terms="Terms of doing it again.")


class Settings(Section):
    start: float = 0.5


def check(settings: Settings) -> list[str]:
    return []


def input_digest(settings: Settings) -> str:
    return "the base model's"


def load_pipeline(settings: Settings, base: Any, *, device: Any, dtype: Any) -> Any:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    return StableDiffusionXLImg2ImgPipeline(**base.components, add_watermarker=False)
