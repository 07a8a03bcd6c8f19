"""Inception-v3's pooled features, 2048 per image: the network behind published FID and KID.

Network and weights are torch-fidelity's (extra `inception`), converted from the original TensorFlow
graph. Input: uint8 RGB, square, resized to 299 px by `pixels.resize` (the network's own bilinear
resize then has nothing to do, where published numbers differ). It runs where torchvision imports,
which torch-fidelity needs; beside a CPU build of torch it does not.
Source: Szegedy et al., CVPR 2016; Heusel et al., NeurIPS 2017.
"""

import importlib.util

from pipeline.contracts import Section
from pipeline.downloads import Download, WebFile
from pipeline.errors import MissingWeightsError
from stages.components.features.extractors._network import Extractor, require
from stages.components.networks.weights import file_problem, local_folder

NAME = "inception"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
REMEDY = f"Run `mrisynth fetch`, or download {URL} and give its path as settings.weights"
INPUT_SIZE, NUM_FEATURES = 299, 2048


class Settings(Section):
    weights: str = f"data/raw/weights/{FILE}"  # relative: to the repository


def check(settings: Settings) -> list[str]:
    """List what keeps the network from loading, with what to do; loads nothing."""
    problems = [
        f"{package} is not installed. Run: pip install 'mrisynth[inception]', on a build of torch "
        "that torchvision imports beside"
        for package in ("torch_fidelity", "torchvision")
        if importlib.util.find_spec(package) is None
    ]
    problem = file_problem(local_folder(settings.weights), SHA256, REMEDY)
    return [*problems, problem] if problem else problems


def downloads(settings: Settings) -> list[Download]:
    """Say where the weights come from; no terms are stated for them."""
    return [WebFile(URL, local_folder(settings.weights), SHA256)]


def input_digest(settings: Settings) -> str:
    """Identify the weights, for freshness: "absent" until network and weights are there."""
    return "absent" if check(settings) else SHA256


def load(settings: Settings, *, device: str = "cpu") -> Extractor:
    """Load the network in eval mode, float32.

    Raises:
        MissingWeightsError: torch-fidelity or torchvision does not import, or the weights are
            absent or are not the ones of `SHA256`.
    """
    import torch

    require(NAME, check(settings))
    try:
        fidelity = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision's own operators
        raise MissingWeightsError(
            f"extractors/{NAME}: torch-fidelity does not import here ({error}); install builds of "
            "torch and torchvision that fit together, or leave the network out"
        ) from error
    network = fidelity.FeatureExtractorInceptionV3(
        NAME,
        [str(NUM_FEATURES)],
        feature_extractor_weights_path=str(local_folder(settings.weights)),
    )
    network.eval().to(device)
    return Extractor(
        name=NAME,
        network=network,
        forward=lambda pixels: network(pixels.to(torch.uint8))[0],
        normalisation=None,  # the network has its own
        input_size=INPUT_SIZE,
        num_features=NUM_FEATURES,
        digest=SHA256,
        device=device,
    )
