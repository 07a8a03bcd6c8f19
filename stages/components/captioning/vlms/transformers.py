"""Any checkpoint that transformers loads as image-text-to-text: Qwen-VL, InternVL, SmolVLM, ...

Its own processor and chat template are used, and no code from a hub. `ovis2`, `gemma3` and `llava`
are this with default weights and advice of their own.
"""

from stages.components.captioning.vlms._local import VlmPlugin
from stages.components.captioning.vlms._local_settings import LocalVlmSettings


class Settings(LocalVlmSettings):
    pass


PLUGIN = VlmPlugin(
    "VLM",
    Settings,
    model_types=(),
    advice={},
    licence="Its terms stand on its page of the hub.",
)
check, input_digest, cache_identity = PLUGIN.check, PLUGIN.input_digest, PLUGIN.cache_identity
for_run, identify, load = PLUGIN.for_run, PLUGIN.identify, PLUGIN.load
predict_memory, downloads = PLUGIN.predict_memory, PLUGIN.downloads
