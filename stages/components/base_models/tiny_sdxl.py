"""The embedded model in the layout of SDXL: 128 px, trained on tumour-free phantoms."""

from stages.components.diffusers_plugin import ATTENTION, DiffusersPlugin
from stages.components.weights import ModelSettings


class Settings(ModelSettings):
    model: str = "data/embedded/tiny_sdxl"


PLUGIN = DiffusersPlugin(
    "sdxl",
    Settings,
    remedy="To make it again: mrisynth embedded build tiny_sdxl.",
)
default_target_modules = ATTENTION
check, input_digest = PLUGIN.check, PLUGIN.input_digest
check_training, predict_memory = PLUGIN.check_training, PLUGIN.predict_memory
load, load_pipeline, load_tokenizers = PLUGIN.load, PLUGIN.load_pipeline, PLUGIN.load_tokenizers
load_vae, tiny = PLUGIN.load_vae, PLUGIN.tiny
