"""Attention of a caption's place words, held to the place: a grounding loss for the base models.

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

PLACE = re.compile(r"location: ([^;]+);|located in the ([^.]+)\.")
MIN_SIDE = 8  # cells; coarser maps cannot hold a finding
SMALL = 1e-4  # keeps logarithms finite


def place_tokens(caption: str, tokenizer: "CLIPTokenizer") -> Tensor:
    """Mark the tokens of the words that name the place, bool (context,)."""
    marked = torch.zeros(tokenizer.model_max_length, dtype=torch.bool)
    found = PLACE.search(caption)
    if found is not None:
        first, last = found.span(1 if found.group(1) else 2)
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


def watch(unet: "UNet2DConditionModel") -> list[WatchedAttention]:
    """Put watched attention into every cross-attention; images change by rounding only."""
    processors: dict[str, Any] = {
        name: WatchedAttention() if "attn2" in name else processor
        for name, processor in unet.attn_processors.items()
    }
    watched = [made for made in processors.values() if isinstance(made, WatchedAttention)]
    unet.set_attn_processor(processors)  # which empties the dictionary
    return watched


def grounding_loss(watched: list[WatchedAttention], places: Tensor, findings: Tensor) -> Tensor:
    """Return how far the place words' attention is from the findings, a scalar; 0 without any.

    Args:
        watched: of the UNet that has just predicted.
        places: tokens that name the place, bool (n, token).
        findings: cells of the latents that show the finding, bool (n, 1, h, w).
    """
    told = places.any(1) & findings.flatten(1).any(1)
    losses = []
    for attention in watched:
        assert attention.probabilities is not None
        side = int(attention.probabilities.shape[2] ** 0.5)
        if side < MIN_SIDE or not told.any():
            continue
        words = places[told][:, None, None]
        attended = (attention.probabilities[told] * words).sum(-1).mean(1)  # (n, cell)
        inside = F.adaptive_max_pool2d(findings[told].float(), side).flatten(1)
        share = (attended * inside).sum(1) / (attended.sum(1) + SMALL)
        fit = F.binary_cross_entropy(attended.clamp(SMALL, 1 - SMALL), inside)
        losses.append((1 - share).square().mean() + fit)
    return torch.stack(losses).mean() if losses else findings.new_zeros((), dtype=torch.float32)
