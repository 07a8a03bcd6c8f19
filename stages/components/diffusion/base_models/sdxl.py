"""SDXL base 1.0 with the VAE that does not overflow in fp16; CreativeML OpenRAIL++-M."""

from pipeline.contracts import Licence
from stages.components.diffusion.base_models._diffusers import DiffusersPlugin
from stages.components.networks.weights import ModelSettings


class Settings(ModelSettings):
    model: str = "stabilityai/stable-diffusion-xl-base-1.0"
    vae: str | None = "madebyollin/sdxl-vae-fp16-fix"


PLUGIN = DiffusersPlugin(
    "sdxl",
    remedy="Licence: https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    licence=Licence(
        part="Stable Diffusion XL 1.0",
        terms="CreativeML Open RAIL++-M; excludes giving medical advice.",
    ),
)
check, input_digest, read_networks = PLUGIN.check, PLUGIN.input_digest, PLUGIN.read_networks
load, load_pipeline, load_tokenizers = PLUGIN.load, PLUGIN.load_pipeline, PLUGIN.load_tokenizers
identify, load_vae, downloads = PLUGIN.identify, PLUGIN.load_vae, PLUGIN.downloads
