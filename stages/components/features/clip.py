"""CLIP's image embedding, and its text embedding of prompts: what `clip_score` compares.

Input: uint8 RGB, square, resized to the network's size by `imaging.resize`, then CLIP's mean and
standard deviation. Output: the projected embedding, float32. Prompts beyond 77 tokens lose their
tails. Weights come from the hub's cache or a folder; give `sha256` to have the file checked. MIT.
Source: Radford et al., "Learning Transferable Visual Models", ICML 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Section
from pipeline.errors import MissingWeightsError
from stages.components import hub_networks
from stages.components.image_networks import run_network

NAME = "clip"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TEXT_BATCH = 64


class Settings(Section):
    model: str = "openai/clip-vit-base-patch16"  # hub id, or a folder in the hub's layout
    revision: str | None = None  # hub only: branch, tag or commit
    sha256: str | None = None  # of model.safetensors; None: not checked, but recorded


@dataclass(frozen=True)
class Extractor:
    """The network and its tokenizer, ready to be called."""

    network: Any
    tokenizer: Any
    device: str
    digest: str
    num_features: int
    input_size: int
    name: str = NAME

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute embeddings of uint8 images (n, height, width, 3) as float32 (n, num_features).

        Raises:
            ValueRangeError: Not uint8, or not square with three channels.
        """
        import torch

        mean, std = (torch.tensor(x, device=self.device).view(1, 3, 1, 1) for x in (MEAN, STD))

        def forward(pixels: Any) -> Any:
            return self._embed("image", pixel_values=(pixels / 255 - mean) / std)

        return run_network(
            forward,
            images,
            name=NAME,
            input_size=self.input_size,
            num_features=self.num_features,
            device=self.device,
        )

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Compute embeddings of prompts as float32 (n, num_features)."""
        import torch

        parts = [np.zeros((0, self.num_features), np.float32)]
        length = self.network.config.text_config.max_position_embeddings
        with torch.inference_mode():
            for start in range(0, len(texts), TEXT_BATCH):
                tokens = self.tokenizer(
                    list(texts[start : start + TEXT_BATCH]),
                    padding="max_length",
                    truncation=True,
                    max_length=length,
                    return_tensors="pt",
                ).to(self.device)
                found = self._embed(
                    "text", input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
                )
                parts.append(found.float().cpu().numpy())
        return np.concatenate(parts)

    def _embed(self, kind: str, **inputs: Any) -> Any:
        found = getattr(self.network, f"get_{kind}_features")(**inputs)
        return getattr(found, "pooler_output", found)  # transformers 5 wraps it


def check(settings: Settings) -> list[str]:
    """List what keeps the network from loading, with what to do; loads nothing."""
    return hub_networks.problems(settings.model, settings.revision, settings.sha256)


def input_digest(settings: Settings) -> str:
    """Identify the weights, for freshness: "absent" until they are there."""
    return "absent" if check(settings) else hub_networks.digest(settings.model, settings.revision)


def load(settings: Settings, *, device: str = "cpu") -> Extractor:
    """Load network and tokenizer in eval mode, float32.

    Raises:
        MissingWeightsError: The weights are absent or are not the ones of `sha256`.
    """
    from transformers import CLIPModel, CLIPTokenizer

    problems = check(settings)
    if problems:
        raise MissingWeightsError(f"features/{NAME}: {problems[0]}")
    folder: Path = hub_networks.folder_of(settings.model, settings.revision)
    network = CLIPModel.from_pretrained(folder, local_files_only=True).eval().to(device)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    config = network.config
    return Extractor(
        network,
        tokenizer,
        device,
        hub_networks.digest(settings.model, settings.revision),
        config.projection_dim,
        config.vision_config.image_size,
    )
