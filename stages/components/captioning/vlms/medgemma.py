"""MedGemma 4B, a Gemma 3 trained on medical images; gated, under terms of its own."""

from stages.components.captioning.vlms._local import VlmPlugin
from stages.components.captioning.vlms._local_settings import LocalVlmSettings


class Settings(LocalVlmSettings):
    model: str = "google/medgemma-4b-it"


PLUGIN = VlmPlugin(
    "MedGemma",
    Settings,
    model_types=("gemma3",),
    advice={"gemma3_text": "That checkpoint reads no images: take google/medgemma-4b-it."},
    licence="MedGemma has terms of its own: "
    "developers.google.com/health-ai-developer-foundations/terms.",
)
check, input_digest, cache_identity = PLUGIN.check, PLUGIN.input_digest, PLUGIN.cache_identity
for_run, identify, load = PLUGIN.for_run, PLUGIN.identify, PLUGIN.load
predict_memory, downloads = PLUGIN.predict_memory, PLUGIN.downloads
