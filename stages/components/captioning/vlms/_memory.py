"""How much memory a local VLM takes, from the headers of its weights alone; imports no torch.

Weights are counted exactly. What decoding keeps of each token is estimated for the longest answer,
so the sum is what a run may need, not what it will.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.components.networks import weights

GIB = 2**30
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Of a quantised number: NF4 with doubly quantised scales (4.127 bits), int8 with a scale a row.
QUANTISED_BYTES = {"4bit": 0.516, "8bit": 1.0}
PROMPT_TOKENS = 320  # the question, in the tokens of a large vocabulary
IMAGE_TOKENS = 1024  # where the configuration does not tell
# The libraries, and on a GPU the context and the workspaces.
OVERHEAD_BYTES = int(1.5 * GIB)


@dataclass(frozen=True)
class VlmMemory:
    """Bytes that captioning needs at its peak."""

    weights: int
    tokens: int  # keys and values of a batch
    overhead: int = OVERHEAD_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.tokens + self.overhead

    def describe(self) -> str:
        """Say it in one line.

        Example:
            >>> VlmMemory(24 * GIB, 3 * GIB).describe()
            'about 28.5 GiB (weights 24.0, tokens of a batch 3.0, libraries 1.5)'
        """
        return (
            f"about {self.total / GIB:.1f} GiB (weights {self.weights / GIB:.1f}, tokens of a "
            f"batch {self.tokens / GIB:.1f}, libraries {self.overhead / GIB:.1f})"
        )


def estimate(
    folder: Path,
    *,
    dtype: str,
    quantization: str,
    whole: Sequence[str],
    batch_size: int,
    max_new_tokens: int,
) -> VlmMemory:
    """Estimate the memory of a checkpoint.

    Args:
        folder: With `config.json` and safetensors files.
        dtype: Of the weights that are not quantised, and of keys and values.
        quantization: "none", "4bit" or "8bit".
        whole: Regular expressions of the names of layers that are not quantised.
        batch_size: Slices decoded together.
        max_new_tokens: Of the longest answer.
    """
    held = 0.0
    for name, shape in weights.read_shapes(folder, None).items():
        is_layer = len(shape) == 2 and "embed" not in name
        is_whole = any(re.match(pattern, name) for pattern in whole)
        is_packed = quantization in QUANTISED_BYTES and is_layer and not is_whole
        size = QUANTISED_BYTES[quantization] if is_packed else BYTES[dtype]
        count = 1
        for side in shape:
            count *= side
        held += count * size
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = PROMPT_TOKENS + _count_image_tokens(config) + max_new_tokens
    text = config.get("text_config", config)
    per_token = _numbers_per_token(text) * BYTES[dtype]
    return VlmMemory(int(held), int(batch_size * kept * per_token))


def _numbers_per_token(text: Mapping[str, Any]) -> int:
    """Return how many numbers of keys and values one token adds; 0 where the config is silent."""
    heads = text.get("num_attention_heads")
    layers = text.get("num_hidden_layers")
    if not heads or not layers or not text.get("hidden_size"):
        return 0
    width = text.get("head_dim") or text["hidden_size"] // heads
    return 2 * int(layers) * int(text.get("num_key_value_heads") or heads) * int(width)


def _count_image_tokens(config: Mapping[str, Any]) -> int:
    if count := config.get("mm_tokens_per_image") or config.get("image_seq_length"):
        return int(count)
    vision = config.get("vision_config", {})
    side, patch = vision.get("image_size"), vision.get("patch_size")
    if isinstance(side, int) and isinstance(patch, int):
        return (side // patch) ** 2
    return IMAGE_TOKENS
