"""DINOv2's class token, recommended for generative models: 768 numbers per image with "base".

Input: uint8 RGB, square, resized to 224 px by `imaging.resize`, then ImageNet's mean and standard
deviation. Output: the class token after the last layer norm, float32. Weights come from the hub's
cache or a folder; give `sha256` to have the file checked. Apache 2.0.
Source: Oquab et al., "DINOv2", TMLR 2024; Stein et al., "Exposing Flaws of Generative Model
Evaluation Metrics", NeurIPS 2023.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Section
from pipeline.errors import MissingWeightsError
from stages.components import hub_networks
from stages.components.image_networks import run_network

NAME = "dinov2"
INPUT_SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Settings(Section):
    model: str = "facebook/dinov2-base"  # hub id, or a folder in the hub's layout
    revision: str | None = None  # hub only: branch, tag or commit
    sha256: str | None = None  # of model.safetensors; None: not checked, but recorded


@dataclass(frozen=True)
class Extractor:
    """The network, ready to be called."""

    network: Any
    device: str
    digest: str
    num_features: int
    name: str = NAME
    input_size: int = INPUT_SIZE

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute features of uint8 images (n, height, width, 3) as float32 (n, num_features).

        Raises:
            ValueRangeError: Not uint8, or not square with three channels.
        """
        import torch

        mean, std = (torch.tensor(x, device=self.device).view(1, 3, 1, 1) for x in (MEAN, STD))

        def forward(pixels: Any) -> Any:
            return self.network((pixels / 255 - mean) / std).last_hidden_state[:, 0]

        return run_network(
            forward,
            images,
            name=NAME,
            input_size=INPUT_SIZE,
            num_features=self.num_features,
            device=self.device,
        )


def check(settings: Settings) -> list[str]:
    """List what keeps the network from loading, with what to do; loads nothing."""
    return hub_networks.problems(settings.model, settings.revision, settings.sha256)


def input_digest(settings: Settings) -> str:
    """Identify the weights, for freshness: "absent" until they are there."""
    return "absent" if check(settings) else hub_networks.digest(settings.model, settings.revision)


def load(settings: Settings, *, device: str = "cpu") -> Extractor:
    """Load the network in eval mode, float32.

    Raises:
        MissingWeightsError: The weights are absent or are not the ones of `sha256`.
    """
    from transformers import Dinov2Model

    problems = check(settings)
    if problems:
        raise MissingWeightsError(f"features/{NAME}: {problems[0]}")
    folder: Path = hub_networks.folder_of(settings.model, settings.revision)
    network = Dinov2Model.from_pretrained(folder, local_files_only=True).eval().to(device)
    digest = hub_networks.digest(settings.model, settings.revision)
    return Extractor(network, device, digest, network.config.hidden_size)
