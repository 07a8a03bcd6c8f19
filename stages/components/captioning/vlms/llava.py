"""LLaVA, LLaVA-NeXT and the converted LLaVA-Med 1.5; by default the embedded tiny LLaVA.

LLaVA-Med's own repository does not load without code from the hub;
`chaoyinshe/llava-med-v1.5-mistral-7b-hf` is a conversion. A checkpoint that brings no chat template
takes `chat_template` from the settings, Mistral's for LLaVA-Med:

    {% for m in messages %}[INST] {% for p in m.content %}{% if p.type == 'image' %}<image>
    {% else %}{{ p.text }}{% endif %}{% endfor %} [/INST]{% endfor %}
"""

from stages.components.captioning.vlms._local import VlmPlugin
from stages.components.captioning.vlms._local_settings import LocalVlmSettings


class Settings(LocalVlmSettings):
    model: str = "data/embedded/llava"


PLUGIN = VlmPlugin(
    "LLaVA",
    Settings,
    model_types=("llava", "llava_next"),
    advice={
        "llava_mistral": "These are the original weights, which need code from the hub: take the "
        "conversion chaoyinshe/llava-med-v1.5-mistral-7b-hf."
    },
    licence="The tiny LLaVA is made again by: mrisynth embedded build llava. LLaVA-Med is for "
    "research only.",
    processor_needs=("patch_size", "vision_feature_select_strategy"),
)
check, input_digest, cache_identity = PLUGIN.check, PLUGIN.input_digest, PLUGIN.cache_identity
for_run, identify, load = PLUGIN.for_run, PLUGIN.identify, PLUGIN.load
predict_memory, downloads = PLUGIN.predict_memory, PLUGIN.downloads
