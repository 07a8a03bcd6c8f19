"""CLIP's image embedding, and its text embedding of prompts: what `clip_score` compares.

Input: uint8 RGB, square, resized to the network's size by `pixels.resize`, then CLIP's mean and
standard deviation. Output: the projected embedding, float32. Prompts beyond 77 tokens lose their
tails. Weights come from the hub's cache or a folder; give `sha256` to have the file checked. MIT.
Source: Radford et al., "Learning Transferable Visual Models", ICML 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Licence
from pipeline.downloads import Download
from stages.components.features.extractors import _hub as hub
from stages.components.features.extractors._network import Extractor, Normalisation

NAME = "clip"
LICENCE = Licence(part="CLIP", terms="MIT.", is_permissive=True)
NORMALISATION = Normalisation(
    255.0, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
TEXT_BATCH = 64

check, input_digest = hub.check, hub.input_digest


class Settings(hub.HubSettings):
    model: str = "openai/clip-vit-base-patch16"


@dataclass(frozen=True, kw_only=True)
class ClipExtractor(Extractor):
    """CLIP, which reads prompts too."""

    tokenizer: Any

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
                features = _unwrap(
                    self.network.get_text_features(
                        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
                    )
                )
                parts.append(features.float().cpu().numpy())
        return np.concatenate(parts)


def downloads(settings: Settings) -> list[Download]:
    """List what of the hub the network is made of."""
    return hub.downloads(settings, LICENCE)


def load(settings: Settings, *, device: str = "cpu") -> ClipExtractor:
    """Load network and tokenizer in eval mode, float32.

    Raises:
        MissingWeightsError: The weights are absent or are not the ones of `sha256`.
    """
    from transformers import CLIPModel, CLIPTokenizer

    network = hub.load(CLIPModel, settings, name=NAME, device=device)
    return ClipExtractor(
        name=NAME,
        network=network,
        forward=lambda pixels: _unwrap(network.get_image_features(pixel_values=pixels)),
        normalisation=NORMALISATION,
        input_size=network.config.vision_config.image_size,
        num_features=network.config.projection_dim,
        digest=hub.digest(settings),
        device=device,
        tokenizer=hub.load_tokenizer(CLIPTokenizer, settings),
    )


def _unwrap(features: Any) -> Any:
    return getattr(features, "pooler_output", features)  # transformers 5 wraps them
