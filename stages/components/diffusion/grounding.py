"""Attention of a caption's place words, held to the place: a grounding loss.

Without it a small UNet does not learn within two thousand steps that "left frontal lobe" is a
place: queries know positions, keys know words, and neither gains before the other does. The loss is
that of TokenCompose (Wang et al., CVPR 2024): how much of the words' attention falls outside the
mask, and the cross-entropy between attention and mask.
"""

import re
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTokenizer

PLACE = re.compile(r"location: ([^;]+)(?:;|$)|located in the ([^.]+)\.")
COARSEST = 2  # cells of a latent along a cell of attention: coarser maps cannot hold a lesion
SMALL = 1e-4  # keeps logarithms finite


def place_tokens(caption: str, tokenizer: "CLIPTokenizer") -> Tensor:
    """Mark the tokens of the words that name the place, bool (context,)."""
    marked = torch.zeros(tokenizer.model_max_length, dtype=torch.bool)
    match = PLACE.search(caption)
    if match is not None:
        first, last = match.span(1 if match.group(1) else 2)
        spans = tokenizer(caption, return_offsets_mapping=True)["offset_mapping"]
        for index, (start, end) in enumerate(spans):
            marked[index] = first <= start < end <= last
    return marked


class WatchedAttention:
    """Attention that keeps its probabilities: `probabilities`, float (n, head, cell, token)."""

    def __init__(self) -> None:
        self.probabilities: Tensor | None = None

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> Tensor:
        """Attend from the cells (n, cell, width) to the tokens (n, token, width)."""
        query, key, value = (
            part.unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for part in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        scores = query @ key.transpose(-1, -2) * attn.scale
        self.probabilities = scores.softmax(-1)
        mixed = (self.probabilities @ value).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return projected


def watch_attention(unet: "UNet2DConditionModel") -> list[WatchedAttention]:
    """Put watched attention into every cross-attention; images change by rounding only."""
    processors: dict[str, Any] = {
        name: WatchedAttention() if "attn2" in name else processor
        for name, processor in unet.attn_processors.items()
    }
    watched = [made for made in processors.values() if isinstance(made, WatchedAttention)]
    unet.set_attn_processor(processors)  # which empties the dictionary
    return watched


def grounding_losses(watched: list[WatchedAttention], places: Tensor, lesions: Tensor) -> Tensor:
    """Return how far the place words' attention is from the lesion, float32 (n,), above 0.

    It is 0 for a sample whose caption names no place, or whose image shows no lesion.

    Args:
        watched: of the UNet that has just predicted.
        places: tokens that name the place, bool (n, token).
        lesions: cells of the latents that show part of the lesion, bool (n, h, w).
    """
    has_both = places.any(1) & lesions.flatten(1).any(1)
    losses = torch.zeros(len(has_both), device=lesions.device)
    if not has_both.any():
        return losses
    parts = []
    for attention in watched:
        assert attention.probabilities is not None
        side = int(attention.probabilities.shape[2] ** 0.5)
        if side * COARSEST < lesions.shape[-1]:
            continue
        words = places[has_both][:, None, None]
        attended = (attention.probabilities[has_both].float() * words).sum(-1).mean(1)  # (n, cell)
        inside = F.adaptive_max_pool2d(lesions[has_both].float(), side).flatten(1)
        share = (attended * inside).sum(1) / (attended.sum(1) + SMALL)
        probability = attended.clamp(SMALL, 1 - SMALL)
        fit = F.binary_cross_entropy(probability, inside, reduction="none").mean(1)
        parts.append((1 - share).square() + fit)
    assert parts, "no cross-attention is fine enough"
    return losses.masked_scatter(has_both, torch.stack(parts).mean(0))
