"""Stable Diffusion 1.5: 512 px, one CLIP text encoder; CreativeML OpenRAIL-M."""

from stages.components.diffusers_plugin import ATTENTION, DiffusersPlugin
from stages.components.weights import ModelSettings


class Settings(ModelSettings):
    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"


PLUGIN = DiffusersPlugin(
    "sd",
    Settings,
    remedy="Licence: https://huggingface.co/spaces/CompVis/stable-diffusion-license",
)
default_target_modules = ATTENTION
check, input_digest = PLUGIN.check, PLUGIN.input_digest
check_training, predict_memory = PLUGIN.check_training, PLUGIN.predict_memory
load, load_pipeline, load_tokenizers = PLUGIN.load, PLUGIN.load_pipeline, PLUGIN.load_tokenizers
load_vae, tiny = PLUGIN.load_vae, PLUGIN.tiny
