"""A vision transformer, written out: patches, a class token, learnable positions, encoder blocks.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; blocks with the norm after
each sum as in Vaswani et al., "Attention Is All You Need", NeurIPS 2017, which the poster does not
state either way.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention with several heads, (batch, token, embedding) to the same."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.to_out = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        mixed = F.scaled_dot_product_attention(*self._project(tokens))
        out: Tensor = self.to_out(mixed.transpose(1, 2).reshape(batch, count, width))
        return out

    def weigh(self, tokens: Tensor) -> Tensor:
        """Return the weights that `forward` mixes with, (batch, head, to token, from token)."""
        query, key, _ = self._project(tokens)
        weights: Tensor = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)
        return weights

    def _project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each (batch, head, token, head width)."""
        batch, count, width = tokens.shape
        qkv = self.to_qkv(tokens).view(batch, count, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return query, key, value


class EncoderBlock(nn.Module):
    """Attention, then two fully connected layers, each added to its input and normalised."""

    def __init__(self, embed_dim: int, num_heads: int, fc_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.fc = nn.Sequential(
            nn.Linear(embed_dim, fc_dim), nn.GELU(), nn.Linear(fc_dim, embed_dim)
        )
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.dropout(self.norm1(tokens + self.attention(tokens)))
        tokens = self.dropout(self.norm2(tokens + self.fc(tokens)))
        return tokens


class VisionTransformer(nn.Module):
    """Images (batch, channel, size, size), float32 in [-1, 1], to logits (batch, num_classes)."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_channels: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        fc_dim: int,
        dropout: float,
        num_classes: int,
        is_standardised: bool = False,
    ) -> None:
        super().__init__()
        num_patches = (image_size // patch_size) ** 2
        self.patch_size = patch_size
        self.is_standardised = is_standardised
        self.to_tokens = nn.Linear(num_channels * patch_size**2, embed_dim)
        self.class_token = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, num_patches + 1, embed_dim) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(EncoderBlock(embed_dim, num_heads, fc_dim, dropout) for _ in range(num_layers))
        )
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.blocks(self._embed(images))
        logits: Tensor = self.head(tokens[:, 0])
        return logits

    def attentions(self, images: Tensor) -> list[Tensor]:
        """Return each layer's attention, (batch, head, to token, from token), class token first."""
        tokens, weights = self._embed(images), []
        for block in self.blocks:
            assert isinstance(block, EncoderBlock)
            weights.append(block.attention.weigh(tokens))
            tokens = block(tokens)
        return weights

    def trace_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches that enter the last layer, and the logits computed from them.

        (batch, embedding, row, column) and (batch, class). Behind the last layer the class token
        alone is read, so that patches there have no part in the logits.
        """
        tokens = self.blocks[:-1](self._embed(images))
        side = images.shape[-1] // self.patch_size
        maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (-1, side))
        joined = torch.cat([tokens[:, :1], maps.flatten(2).transpose(1, 2)], dim=1)
        return maps, self.head(self.blocks[-1](joined)[:, 0])

    def _embed(self, images: Tensor) -> Tensor:
        """Turn images into tokens (batch, 1 + patch, embedding), the class token first."""
        if self.is_standardised:
            spread, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True)
            images = (images - mean) / (spread + 1e-6)
        patches = F.unfold(images, self.patch_size, stride=self.patch_size).transpose(1, 2)
        tokens = self.to_tokens(patches)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        embedded: Tensor = self.dropout(tokens + self.positions)
        return embedded
