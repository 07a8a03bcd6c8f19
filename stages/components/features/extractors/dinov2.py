"""DINOv2's class token, recommended for generative models: 768 numbers per image with "base".

Input: uint8 RGB, square, resized to 224 px by `pixels.resize`, then ImageNet's mean and standard
deviation. Output: the class token after the last layer norm, float32. Weights come from the hub's
cache or a folder; give `sha256` to have the file checked. Apache 2.0.
Source: Oquab et al., "DINOv2", TMLR 2024; Stein et al., "Exposing Flaws of Generative Model
Evaluation Metrics", NeurIPS 2023.
"""

from pipeline.contracts import Licence
from pipeline.downloads import Download
from stages.components.features.extractors import _hub as hub
from stages.components.features.extractors._network import IMAGENET, Extractor

NAME = "dinov2"
LICENCE = Licence(part="DINOv2", terms="Apache 2.0.", is_permissive=True)
INPUT_SIZE = 224  # px

check, input_digest = hub.check, hub.input_digest


class Settings(hub.HubSettings):
    model: str = "facebook/dinov2-base"


def downloads(settings: Settings) -> list[Download]:
    """List what of the hub the network is made of."""
    return hub.downloads(settings, LICENCE)


def load(settings: Settings, *, device: str = "cpu") -> Extractor:
    """Load the network in eval mode, float32.

    Raises:
        MissingWeightsError: The weights are absent or are not the ones of `sha256`.
    """
    from transformers import Dinov2Model

    network = hub.load(Dinov2Model, settings, name=NAME, device=device)
    return Extractor(
        name=NAME,
        network=network,
        forward=lambda pixels: network(pixels).last_hidden_state[:, 0],
        normalisation=IMAGENET,
        input_size=INPUT_SIZE,
        num_features=network.config.hidden_size,
        digest=hub.digest(settings),
        device=device,
    )
