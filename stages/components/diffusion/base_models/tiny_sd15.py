"""The embedded model in the layout of SD 1.5: 128 px, trained on tumour-free phantoms."""

from stages.components.diffusion.base_models._diffusers import DiffusersPlugin
from stages.components.networks.weights import ModelSettings


class Settings(ModelSettings):
    model: str = "data/embedded/tiny_sd15"


PLUGIN = DiffusersPlugin(
    "sd",
    remedy="To make it again: mrisynth embedded build tiny_sd15.",
)
check, input_digest, read_networks = PLUGIN.check, PLUGIN.input_digest, PLUGIN.read_networks
load, load_pipeline, load_tokenizers = PLUGIN.load, PLUGIN.load_pipeline, PLUGIN.load_tokenizers
identify, load_vae, downloads = PLUGIN.identify, PLUGIN.load_vae, PLUGIN.downloads
