"""The poster's small vision transformer, tumour or not; its settings are the poster's."""

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.contracts import Section
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from stages.components.vision_transformer import VisionTransformer

NUM_CHANNELS = 3
NUM_CLASSES = 2  # no tumour, tumour


class Settings(Section):
    patch_size: int = Field(16, ge=1)  # px
    embed_dim: int = Field(128, ge=1)
    num_heads: int = Field(4, ge=1)
    num_layers: int = Field(1, ge=1)
    fc_dim: int = Field(512, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)


def build(settings: Settings, image_size: int) -> "VisionTransformer":
    """Build the network with random weights, drawn from torch's generator as it stands.

    Input: (batch, 3, image_size, image_size), float32 in [-1, 1]; output: logits (batch, 2).

    Raises:
        ConfigError: The patches do not tile the image, or the heads do not share the embedding.
    """
    from stages.components.vision_transformer import VisionTransformer

    problems = []
    if image_size % settings.patch_size:
        problems.append(
            f"classify.image_size: expected a multiple of the patch size {settings.patch_size} px, "
            f"found {image_size}"
        )
    if settings.embed_dim % settings.num_heads:
        problems.append(
            f"classify.model.settings.embed_dim: expected a multiple of num_heads "
            f"{settings.num_heads}, found {settings.embed_dim}"
        )
    if problems:
        raise ConfigError("the configuration", problems)
    return VisionTransformer(
        image_size=image_size,
        patch_size=settings.patch_size,
        num_channels=NUM_CHANNELS,
        embed_dim=settings.embed_dim,
        num_heads=settings.num_heads,
        num_layers=settings.num_layers,
        fc_dim=settings.fc_dim,
        dropout=settings.dropout,
        num_classes=NUM_CLASSES,
    )
