"""Embeddings of distinct texts by frozen text encoders, each computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.components.diffusion.base_model import BaseModel, Conditioning, encode_prompts


@dataclass(frozen=True)
class TextCache:
    """Embeddings of the distinct captions of a set, in the compute dtype, on the CPU."""

    index: dict[str, int]
    prompt_embeds: Tensor  # (distinct, 77, width)
    pooled: Tensor | None  # (distinct, width)

    def look_up(self, texts: Sequence[str], device: torch.device) -> Conditioning:
        """Gather the embeddings of texts, (len(texts), 77, width) on `device`."""
        rows = [self.index[text] for text in texts]
        pooled = None if self.pooled is None else self.pooled[rows].to(device)
        return Conditioning(self.prompt_embeds[rows].to(device), pooled)


def encode_texts(base: BaseModel, texts: Sequence[str], batch_size: int) -> TextCache:
    """Encode each distinct text once, in batches of sorted texts; deterministic."""
    distinct = sorted(set(texts))
    parts = []
    with torch.no_grad():
        for start in range(0, len(distinct), batch_size):
            parts.append(encode_prompts(base, distinct[start : start + batch_size]))
    pooled = [part.pooled.cpu() for part in parts if part.pooled is not None]
    return TextCache(
        index={text: row for row, text in enumerate(distinct)},
        prompt_embeds=torch.cat([part.prompt_embeds.cpu() for part in parts]),
        pooled=torch.cat(pooled) if pooled else None,
    )
