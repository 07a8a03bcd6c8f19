"""Grad-CAM: the last maps of features, weighted by what they do for the class.

The maps are those before pooling, in a convolutional network; in a transformer, the patches as they
enter the last layer, because behind it only the class token is read and no patch has a gradient.

Source: Selvaraju et al., "Grad-CAM", ICCV 2017, equations 1 and 2, on the log odds of the class.
"""

from typing import TYPE_CHECKING

from stages.classify.maps import Mapped, Maps, enlarge, log_odds

if TYPE_CHECKING:
    from torch import Tensor, nn

CITATION = "Selvaraju et al., ICCV 2017"


def find_obstacle(network: "nn.Module") -> str | None:
    """Say that the network shows no maps; None if it does."""
    if isinstance(network, Mapped):
        return None
    return f"{type(network).__name__} shows no maps of features"


def explain(network: "nn.Module", images: "Tensor", *, target: int, seed: int) -> Maps:
    """Map the positive part of the weighted sum of features; `seed` is not used."""
    import torch

    assert isinstance(network, Mapped)  # find_obstacle has been asked
    with torch.enable_grad():
        maps, logits = network.trace_maps(images)
        (gradient,) = torch.autograd.grad(log_odds(logits, target).sum(), maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return enlarge(
        (weights * maps).sum(dim=1).relu(), (images.shape[2], images.shape[3]), "bilinear"
    )
