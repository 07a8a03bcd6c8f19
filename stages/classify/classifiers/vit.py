"""The poster's small vision transformer; its settings are the poster's."""

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.contracts import Section
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from stages.classify.classifiers._vision_transformer import VisionTransformer

NUM_CHANNELS = 3


class Settings(Section):
    patch_size: int = Field(16, ge=1)  # px
    embed_dim: int = Field(128, ge=1)
    num_heads: int = Field(4, ge=1)
    num_layers: int = Field(1, ge=1)
    fc_dim: int = Field(512, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    # Each slice to mean 0 and spread 1 first, else black air outweighs all that it surrounds.
    standardise: bool = False


def size_faults(settings: Settings, image_size: int) -> list[str]:
    """Say what keeps the network from being built, MODEL standing for its place in the config."""
    problems = []
    if image_size % settings.patch_size:
        problems.append(
            f"MODEL.settings.patch_size: expected a divisor of classify.image_size ({image_size} "
            f"px), found {settings.patch_size}"
        )
    if settings.embed_dim % settings.num_heads:
        problems.append(
            f"MODEL.settings.embed_dim: expected a multiple of num_heads {settings.num_heads}, "
            f"found {settings.embed_dim}"
        )
    return problems


def build(settings: Settings, image_size: int, num_classes: int) -> "VisionTransformer":
    """Build the network with random weights, drawn from torch's generator as it stands.

    Input: (batch, 3, image_size, image_size), float32 in [-1, 1]; output: logits (batch, class).

    Raises:
        ConfigError: The patches do not tile the image, or the heads do not share the embedding.
    """
    from stages.classify.classifiers._vision_transformer import VisionTransformer

    problems = size_faults(settings, image_size)
    if problems:
        lines = [line.replace("MODEL", "classify.model") for line in problems]
        raise ConfigError("the configuration", lines)
    return VisionTransformer(
        image_size=image_size,
        patch_size=settings.patch_size,
        num_channels=NUM_CHANNELS,
        embed_dim=settings.embed_dim,
        num_heads=settings.num_heads,
        num_layers=settings.num_layers,
        fc_dim=settings.fc_dim,
        dropout=settings.dropout,
        is_standardised=settings.standardise,
        num_classes=num_classes,
    )
