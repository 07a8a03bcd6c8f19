"""VGG-16's last feature maps, pooled: 512 numbers per image, the network of the poster's scores.

Input: uint8 RGB, square, resized to 224 px by `pixels.resize`, then ImageNet's mean and standard
deviation. Output: the mean over places of the last pooling layer, float32. The weights are the
file `vgg16-397923af.pth` of download.pytorch.org (528 MB, BSD 3-Clause), checked by its SHA-256.
Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015.
"""

from typing import TYPE_CHECKING

from pipeline.contracts import Licence, Section
from pipeline.downloads import Download, WebFile
from stages.components.features.extractors._network import IMAGENET, Extractor, require
from stages.components.networks.weights import file_problem, local_folder

if TYPE_CHECKING:
    from torch import nn

NAME = "vgg16"
LICENCE = Licence(part="VGG-16 of torchvision", terms="BSD 3-Clause.", is_permissive=True)
SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
REMEDY = f"Run `mrisynth fetch`, or download {URL} and give its path as settings.weights"
INPUT_SIZE, NUM_FEATURES = 224, 512
WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: pool


class Settings(Section):
    weights: str = "data/raw/weights/vgg16-397923af.pth"  # relative: to the repository
    sha256: str = SHA256  # of the checkpoint; another one only for weights of your own


def build_network() -> "nn.Module":
    """Build the convolutional part; parameters are named as in the checkpoint's `features`."""
    from torch import nn

    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def check(settings: Settings) -> list[str]:
    """List what keeps the network from loading, with what to do; loads nothing."""
    problem = file_problem(local_folder(settings.weights), settings.sha256, REMEDY)
    return [problem] if problem else []


def downloads(settings: Settings) -> list[Download]:
    """Say where the checkpoint comes from; one of the user's own comes from nowhere."""
    if settings.sha256 != SHA256:
        return []
    return [WebFile(URL, local_folder(settings.weights), SHA256, LICENCE)]


def input_digest(settings: Settings) -> str:
    """Identify the weights, for freshness: "absent" until they are there."""
    return "absent" if check(settings) else settings.sha256


def load(settings: Settings, *, device: str = "cpu") -> Extractor:
    """Load the network in eval mode, float32.

    Raises:
        MissingWeightsError: The weights are absent or are not the ones of `sha256`.
    """
    import torch

    require(NAME, check(settings))
    state = torch.load(local_folder(settings.weights), map_location="cpu", weights_only=True)
    network = build_network()
    network.load_state_dict(
        {
            key.removeprefix("features."): value
            for key, value in state.items()
            if key.startswith("features.")
        }
    )
    network.eval().requires_grad_(False).to(device)
    return Extractor(
        name=NAME,
        network=network,
        forward=lambda pixels: network(pixels).mean(dim=(2, 3)),
        normalisation=IMAGENET,
        input_size=INPUT_SIZE,
        num_features=NUM_FEATURES,
        digest=settings.sha256,
        device=device,
    )
