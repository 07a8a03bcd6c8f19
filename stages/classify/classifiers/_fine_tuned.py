"""EfficientNet-Lite0 with a new last layer, every weight of it open to training."""

import torch.nn.functional as F
from torch import Tensor, nn

from stages.components.features.extractors.efficientnet_lite0 import INPUT_SIZE, MEAN, STD
from stages.components.networks.efficientnet import NUM_FEATURES, EfficientNetLite0


class FineTunedLite0(nn.Module):
    """Images (batch, 3, size, size), float32 in [-1, 1], to logits (batch, num_classes)."""

    def __init__(self, trunk: EfficientNetLite0, *, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.trunk = trunk.requires_grad_(True)
        self.trunk._fc.requires_grad_(False)  # ImageNet's classes are not asked for
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.trace_maps(images)[1]

    def trace_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the trunk's last maps (batch, 1280, 7, 7), and the logits computed from them."""
        size = (INPUT_SIZE, INPUT_SIZE)
        resized = F.interpolate(images, size, mode="bilinear", antialias=True)
        pixels = (resized + 1) * 127.5
        maps = self.trunk.maps((pixels - MEAN) / STD)
        return maps, self.head(self.dropout(maps.mean(dim=(2, 3))))
