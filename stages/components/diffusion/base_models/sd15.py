"""Stable Diffusion 1.5: 512 px, one CLIP text encoder; CreativeML OpenRAIL-M."""

from pipeline.contracts import Licence
from stages.components.diffusion.base_models._diffusers import DiffusersPlugin
from stages.components.networks.weights import ModelSettings


class Settings(ModelSettings):
    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"


PLUGIN = DiffusersPlugin(
    "sd",
    remedy="Licence: https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    licence=Licence(
        part="Stable Diffusion 1.5", terms="CreativeML Open RAIL-M; excludes giving medical advice."
    ),
)
check, input_digest, read_networks = PLUGIN.check, PLUGIN.input_digest, PLUGIN.read_networks
load, load_pipeline, load_tokenizers = PLUGIN.load, PLUGIN.load_pipeline, PLUGIN.load_tokenizers
identify, load_vae, downloads = PLUGIN.identify, PLUGIN.load_vae, PLUGIN.downloads
