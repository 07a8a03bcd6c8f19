"""A base model in the layout of SDXL."""

from pipeline.contracts import Licence
from stages.components.diffusion.base_models._diffusers import DiffusersPlugin
from stages.components.networks.weights import ModelSettings


class Settings(ModelSettings):
    model: str = "nobody/nova"


PLUGIN = DiffusersPlugin(
    "sdxl", remedy="Train it.", licence=Licence(part="Nova", terms="Terms of Nova.")
)
check, input_digest, read_networks = PLUGIN.check, PLUGIN.input_digest, PLUGIN.read_networks
load, load_pipeline, load_tokenizers = PLUGIN.load, PLUGIN.load_pipeline, PLUGIN.load_tokenizers
identify, load_vae = PLUGIN.identify, PLUGIN.load_vae
