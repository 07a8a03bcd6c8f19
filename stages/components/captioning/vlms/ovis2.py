"""Ovis2, 1B to 34B (`thisisiron/Ovis2-1B-hf`, ...); by default the embedded tiny Ovis2.

The weights of AIDC-AI themselves need conversion first; the -hf repositories are converted. Their
processors may cut slices above 470 px into patches, five times the tokens of the slice alone;
`processor: {crop_to_patches: false}` leaves them whole.
"""

from stages.components.captioning.vlms._local import VlmPlugin
from stages.components.captioning.vlms._local_settings import LocalVlmSettings


class Settings(LocalVlmSettings):
    model: str = "data/embedded/ovis2"


PLUGIN = VlmPlugin(
    "Ovis2",
    Settings,
    model_types=("ovis2",),
    advice={
        "ovis": "These are the original weights, which need code from the hub: take "
        "thisisiron/Ovis2-1B-hf or a larger one of that kind, or convert them with transformers' "
        "convert_ovis2_weights_to_hf.py."
    },
    licence="The tiny Ovis2 is made again by: mrisynth embedded build ovis2. Ovis2: Apache 2.0.",
)
check, input_digest, cache_identity = PLUGIN.check, PLUGIN.input_digest, PLUGIN.cache_identity
for_run, identify, load = PLUGIN.for_run, PLUGIN.identify, PLUGIN.load
predict_memory, downloads = PLUGIN.predict_memory, PLUGIN.downloads
