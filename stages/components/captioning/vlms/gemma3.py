"""Gemma 3 and MedGemma (`google/gemma-3-12b-it`, ...); by default the embedded tiny Gemma."""

from stages.components.captioning.vlms._local import VlmPlugin
from stages.components.captioning.vlms._local_settings import LocalVlmSettings


class Settings(LocalVlmSettings):
    model: str = "data/embedded/gemma3"


PLUGIN = VlmPlugin(
    "Gemma 3",
    Settings,
    model_types=("gemma3",),
    advice={
        "gemma3_text": "That checkpoint reads no images: take one of 4B or more, such as "
        "google/gemma-3-4b-it or google/medgemma-4b-it."
    },
    licence="The tiny Gemma is made again by: mrisynth embedded build gemma3. Gemma and "
    "MedGemma have terms of their own, ai.google.dev/gemma/terms and "
    "developers.google.com/health-ai-developer-foundations/terms.",
)
check, input_digest, cache_identity = PLUGIN.check, PLUGIN.input_digest, PLUGIN.cache_identity
for_run, identify, load = PLUGIN.for_run, PLUGIN.identify, PLUGIN.load
predict_memory, downloads = PLUGIN.predict_memory, PLUGIN.downloads
